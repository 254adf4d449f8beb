"""A request on its way: what events say of it, and when its stage is told another plan. Over real
packets and workers of a fake family; the rule is asked in `tests/routing/test_replan.py`."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

from diffusion_edge.api import inflight
from diffusion_edge.api.answers import images
from diffusion_edge.api.inflight import Image, InFlight, Replanned
from diffusion_edge.config import Replan
from diffusion_edge.packet import new_packet, write
from diffusion_edge.plan import Plan
from diffusion_edge.request import Accepted, Done, ImageRequest, Progress, Times
from diffusion_edge.routing.promises import Kept, Promises
from diffusion_edge.routing.rule import Standing
from diffusion_edge.sites.local import LocalTransport
from diffusion_edge.view import Choice, View
from tests.api.fakes import FakeBoard, fake_picture, request, service, settings
from tests.engine.test_worker import Gate, a_worker, gate
from tests.fakes import FakeFamily

__all__ = ["gate"]
PLAN, OTHER = Plan.parse("phone:6,hall:14"), Plan.parse("phone:8,tower:12")
DONE = Done(fake_picture(1, 2, 2), (), ())


@dataclass
class Links:
    """Which packets are under way."""

    away: dict[Any, tuple[tuple[str, str], int]] = field(default_factory=dict)

    def left(self, key: Any, pair: tuple[str, str], nbytes: int) -> None:
        self.away[key] = pair, nbytes

    def came(self, key: Any) -> None:
        self.away.pop(key, None)


def flying(plan: Plan = PLAN) -> tuple[InFlight, Links]:
    asked, links = request(images=1), Links()
    view = FakeBoard(settings()).view(asked)
    kept = Kept(Promises(), ())
    kept.revised = lambda *_: None  # type: ignore[method-assign]  # `tests/routing/test_promises.py`
    return InFlight(asked, view, kept, links, 0.0, [Image(plan)]), links  # type: ignore[arg-type]


def test_events_say_where_it_is_and_what_is_under_way() -> None:
    flight, links = flying()
    (image,) = flight.images
    flight.saw(0, Accepted("phone"))
    assert (image.span, image.here, links.away) == (0, True, {})
    flight.saw(0, Progress("phone", 6))
    assert not image.here
    assert list(links.away.values()) == [(("phone", "hall"), flight.view.packet_bytes[6])]
    flight.saw(0, Accepted("hall"))
    assert (image.span, image.here, links.away) == (1, True, {})
    flight.saw(0, Progress("hall", 20))
    flight.saw(0, DONE)
    assert (image.here, links.away) == (False, {})


def test_a_stage_may_have_gone_by_the_new_plan_before_it_could_say_so() -> None:
    flight, links = flying()
    flight.saw(0, Accepted("phone"))
    flight.images[0].wanted = Replanned(0, 3, PLAN, OTHER)
    flight.saw(0, Progress("phone", 8))
    assert flight.images[0].plan is OTHER
    assert flight.replans == [Replanned(0, 3, PLAN, OTHER)]
    assert [pair for pair, _ in links.away.values()] == [("phone", "tower")]
    flight.takes(0)  # its word comes late
    assert len(flight.replans) == 1
    flight.over()
    assert links.away == {}


@pytest.mark.parametrize(("taken", "left"), [(True, 0), (False, 1), (None, 1)])
async def test_its_stage_is_told_and_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch, taken: bool | None, left: int
) -> None:
    """Who does not answer is not asked again; who took a plan not more often than it may."""
    told: list[tuple[int, Plan, int, Plan]] = []

    async def tell(*what: Any) -> bool | None:
        told.append(what)
        return taken

    def again(_: ImageRequest, view: View, quality: Any, where: Standing) -> Plan | None:
        return OTHER if where.plan is PLAN else None

    monkeypatch.setattr(inflight, "again", again)
    monkeypatch.setattr(inflight, "standing", lambda *a: Standing(a[2], 3))
    flight, _ = flying()
    flight.saw(0, Accepted("phone"))
    looks = 0
    enough = asyncio.Event()

    def view(asked: ImageRequest) -> View:
        nonlocal looks
        looks += 1
        if looks == 3:
            enough.set()
        return flight.view

    looking = asyncio.create_task(
        inflight.keep_looking(flight, Replan(most=1, look_s=1e-6), None, view, tell)  # type: ignore[arg-type]
    )
    await enough.wait()
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    assert told[0] == (0, OTHER, 0, PLAN)
    assert len(told) == 1 if taken is not False else len(told) > 1
    assert flight.images[0].plan is (OTHER if taken else PLAN)
    assert len(flight.replans) == 1 - left


# ---------------------------------------------------------------------------- a whole service


class Board(FakeBoard):
    """Says of the phone what its worker says."""

    def promised(
        self, request: ImageRequest, choice: Choice, view: View
    ) -> AbstractContextManager[Kept]:
        kept = Kept(Promises(), ())
        kept.revised = lambda *_: None  # type: ignore[method-assign]
        return nullcontext(kept)


@pytest.mark.parametrize("most", [0, 1])
async def test_an_answer_says_what_was_run_and_from_which_plan_it_turned(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, most: int
) -> None:
    """The image stands on the phone until it was looked at."""
    told = asyncio.Event()

    def again(_: ImageRequest, view: View, quality: Any, where: Standing) -> Plan | None:
        return OTHER if where.plan.spans == PLAN.spans else None

    monkeypatch.setattr(inflight, "again", again)
    monkeypatch.setattr(inflight, "standing", lambda *a: Standing(a[2], 1))
    monkeypatch.setattr("diffusion_edge.routing.policies.RULES", _with_stated_plans())
    async with (
        a_worker("phone", on_predict=gate) as phone,
        a_worker("tower") as tower,
        a_worker("hall") as hall,
    ):
        replan = phone.replan
        monkeypatch.setattr(phone, "replan", lambda data: told.set() or replan(data))
        sites = LocalTransport({"phone": phone, "tower": tower, "hall": hall})
        config = settings(replan={"most": most, "look_s": 1e-3})
        made = service(sites, Board(config), config, tells=sites)  # type: ignore[arg-type]
        made._packet = _packet
        asked = request(policy="fixed", plan=PLAN, images=1, solver="ddim", width=16, height=16)
        running = asyncio.create_task(made.generate(asked))
        await gate.reached()
        if most:
            await told.wait()
        gate.open()
        result = await running
    answer = images(result, [b""], "png", made)["diffusion_edge"]
    ran = [(span.stage, span.start, span.stop) for span in result.images[0].spans]
    if not most:
        assert (answer["replans"], answer["plan"]) == ([], str(PLAN))
        assert ran == [("phone", 0, 6), ("hall", 6, 20)]
        return
    assert ran == [("phone", 0, 8), ("tower", 8, 20)]
    assert answer["plan"] == str(OTHER)
    assert answer["replans"] == [
        {"image": 0, "at": 1, "from": str(PLAN), "to": str(OTHER), "reason": OTHER.reason}
    ]


def _with_stated_plans() -> dict[str, Any]:
    from diffusion_edge.routing.elastic import considered
    from diffusion_edge.routing.fixed import choose
    from diffusion_edge.routing.policies import RULES
    from diffusion_edge.routing.rule import Rule

    return {**RULES, "fixed": Rule(choose, considered)}


def _packet(asked: ImageRequest, plan: Plan, image: int, left: Times) -> bytes:
    return write(new_packet(asked, plan, image, FakeFamily("phone").latent_space, left))
