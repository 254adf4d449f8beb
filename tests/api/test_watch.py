"""One finished request in so many is kept, if the config says so and the table knows it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from PIL import Image

from diffusion_edge.api.service import GenerationResult, Service
from diffusion_edge.api.watch import Watched, Watcher
from diffusion_edge.config import Watch
from diffusion_edge.errors import StageLost
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from tests.api import fakes
from tests.api.fakes import FakeTransport, failing, fake_picture, service, settings
from tests.routing.views import symmetric


def watcher(folder: Path, every: int = 1, most: int = 1000) -> Watcher:
    return Watcher(Watch(every=every, folder=str(folder), most=most), settings(), symmetric())


def request(**changes: object) -> ImageRequest:
    """What the table knows: its size, solver and guidance."""
    known = {"width": 64, "height": 64, "images": 1, "guidance": 3.0, "policy": "fixed"}
    plan = Plan.parse("phone:12,hall:8")
    return fakes.request(**({**known, "plan": plan, "prompt": "a blue star"} | changes))


def watching(kept: Watcher, transport: FakeTransport | None = None) -> Service:
    made = service(transport)
    return Service(
        card=made.card,
        settings=made.settings,
        quality=made.quality,
        board=made.board,
        transport=transport or FakeTransport(),
        watcher=kept,
        packet=fakes.fake_packet,
    )


async def test_what_is_kept_tells_how_to_draw_it_again(tmp_path: Path) -> None:
    folder = tmp_path / "watched"
    result = await watching(watcher(folder)).generate(request(seed=31, images=2))
    (file,) = folder.glob("*.json")
    watched = Watched.read(file)
    assert (watched.prompt, watched.plan, watched.seed) == ("a blue star", "device:12,cloud:8", 31)
    assert (watched.width, watched.height) == (64, 64)
    assert watched.quality == pytest.approx(0.4 * 0.6 + 0.4) == result.choice.quality
    assert watched.quality_bound == result.choice.quality_bound
    image = Image.open(file.with_suffix(".png"))
    assert image.convert("RGB").tobytes() == fake_picture(31, 64, 64).rgb


async def test_one_in_so_many_is_kept_and_the_oldest_go(tmp_path: Path) -> None:
    kept = watcher(tmp_path, every=3, most=2)
    for seed in range(13):
        result = await watching(kept).generate(request(seed=seed, request_id=f"r{seed:02}"))
        assert isinstance(result, GenerationResult)
    seeds = sorted(Watched.read(file).seed for file in tmp_path.glob("*.json"))
    assert seeds == [8, 11]
    assert len(list(tmp_path.glob("*.png"))) == 2


@pytest.mark.parametrize(
    "unknown",
    [
        {"solver": "euler"},
        {"guidance": 5.0},
        {"negative_prompt": "red"},
        {"width": 96, "height": 96},
        {"plan": Plan.parse("phone:3,hall:4"), "steps": 7},
        {"plan": Plan.parse("phone:12@2,hall:8")},
        {"codec": "int8"},
    ],
    ids=str,
)
async def test_what_the_table_does_not_speak_of_is_not_counted(
    unknown: dict[str, object], tmp_path: Path
) -> None:
    kept = watcher(tmp_path, every=2)
    await watching(kept).generate(request())
    await watching(kept).generate(request(**unknown))
    assert not list(tmp_path.iterdir())
    await watching(kept).generate(request())
    assert len(list(tmp_path.iterdir())) == 2


async def test_what_failed_is_not_kept_and_a_full_disk_fails_nobody(tmp_path: Path) -> None:
    lost = failing(StageLost("died", stage="hall"))
    with pytest.raises(StageLost):
        await watching(watcher(tmp_path), lost).generate(request())
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    result = await watching(watcher(tmp_path / "file")).generate(request())
    assert len(result.images) == 1


async def test_nothing_is_kept_unless_the_config_says_so(tmp_path: Path) -> None:
    await asyncio.gather(*(service().generate(request()) for _ in range(3)))
    assert settings().watch is None
