"""The search against a look at every plan."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast

import numpy as np
import pytest

from diffusion_edge.plan import Tier
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost, elastic
from diffusion_edge.routing import search as search_module
from diffusion_edge.routing.best import Asked, Found
from diffusion_edge.routing.cost import Bools, Counts, Floats
from diffusion_edge.routing.finish import Tables
from diffusion_edge.routing.options import options
from diffusion_edge.routing.quality import QualityTable, Size
from diffusion_edge.routing.search import search
from diffusion_edge.view import Held, Link, StageStatus, View
from tests.long import long, often

from .brute import Best, best
from .views import CELLS, request

TIER: tuple[Tier, ...] = ("device", "edge", "cloud")


def drawn_stage(chance: random.Random, name: str, tier: Tier, alike: bool) -> StageStatus:
    """alike: to others of the tier, and idle."""
    step_s = {"device": 0.4, "edge": 0.2, "cloud": 0.05}[tier]
    slower = 1.0 if alike else chance.choice([0.5, 1.0, chance.uniform(0.5, 2.0)])
    rows = (1, 2, 4, 8) if tier == "cloud" else (1, 2)
    held = [
        Held(
            request=f"{name}-{k}",
            image=0,
            steps=chance.randint(1, 20),
            rows=chance.choice([1, 2]),
            cells=CELLS,
            due_s=chance.uniform(-1.0, 8.0),
            encodes=chance.random() < 0.3,
            decodes=chance.random() < 0.5,
            arrives_s=chance.choice([0.0, 0.0, chance.random()]),
        )
        for k in range(0 if alike else chance.choice([0, 0, 1, 2, 5]))
    ]
    return StageStatus(
        stage=name,
        tier=tier,
        model=tier,
        queue_s=0.0,
        queued=len(held),
        capacity=32,
        step_s={CELLS: {n: slower * step_s * (1 + 0.2 * (n - 1)) for n in rows}},
        encode_s=slower * step_s / 2,
        decode_s={CELLS: slower * step_s},
        resident_bytes=0,
        batches=tier == "cloud",
        emulated=chance.random() < 0.5,
        held=tuple(held),
    )


def drawn_view(chance: random.Random, each: int, steps: int, least: int = 0) -> View:
    """Up to so many stages of each tier, and at least one, whose names say nothing of it."""
    names = [f"s{k:02}" for k in range(3 * each)]
    chance.shuffle(names)
    alike, all_linked = chance.random() < 0.3, chance.random() < 0.6
    stages, ages = {}, {}
    for tier in TIER:
        for _ in range(chance.randint(max(least, 0 if stages else 1), each)):
            name = names.pop()
            stages[name] = drawn_stage(chance, name, tier, alike)
            ages[name] = 0.0 if alike else chance.choice([0.0, 0.25])
    links = {}
    for a in stages:
        for b in stages:
            if a != b and (all_linked or chance.random() < 0.7):
                rate = 1e6 if alike else 10 ** chance.uniform(4, 7)
                links[a, b] = Link(rate, 0.01 if alike else chance.uniform(0, 0.1))
    small, large = chance.randint(1_000, 50_000), chance.randint(1_000, 50_000)
    at = chance.randint(0, steps)
    free = chance.random() < 0.2
    return View(
        stages=stages,
        links=links,
        price_per_s={"device": 0.0, "edge": 0.0 if free else 1.0, "cloud": 0.0 if free else 4.0},
        packet_bytes=tuple(small if step < at else large for step in range(steps + 1)),
        codecs=("exact",) * (steps + 1),
        cells=CELLS,
        guidance={name: 0.0 for name in stages if chance.random() < 0.2},
        age_s=ages,
    )


class Drawn:
    """A quality table that knows every order and number of steps, and no rule: by order of models a
    value and a slope, and the bound below it."""

    def __init__(self, chance: random.Random) -> None:
        self._seed = chance.random()
        self._whole = chance.random() < 0.3  # values that plans share

    def relative_all(self, models: Sequence[str], steps: Sequence[Counts], size: Size) -> Floats:
        chance = random.Random(f"{self._seed} {tuple(models)}")
        total = np.zeros(len(steps[0]))
        for model, count in zip(models, steps, strict=True):
            each = {"device": 0.5, "edge": 0.8, "cloud": 1.0}[model] * chance.uniform(0.8, 1.0)
            total = total + each * count / sum(int(n[0]) for n in steps)
        return total.round(1) if self._whole else total

    def bound_all(self, models: Sequence[str], steps: Sequence[Counts], size: Size) -> Floats:
        return self.relative_all(models, steps, size) - 0.01 * len(models)


def drawn_request(chance: random.Random, steps: int) -> ImageRequest:
    return request(
        steps=steps,
        images=chance.choice([1, 1, 1, 2, 3]),
        quality_floor=chance.choice([0.0, 0.5, 0.7, 0.8, 0.95, 1.0]),
        deadline_s=chance.choice([0.3, 1.0, 3.0, 10.0, 60.0]),
    )


def plan_of(found: Found) -> str:
    return ",".join(f"{s}:{n}" for s, n in zip(found.stages, found.steps, strict=True))


def same_as_brute_force(wanted: ImageRequest, seen: View, quality: QualityTable) -> None:
    """In time by price, and done first, as policies ask; then within half of what these take."""
    tables, paid, charged = Tables(wanted, seen), {}, {}
    for name, status in seen.stages.items():
        guided = cost.guided(name, wanted, seen)
        table = tables.of(name, guided, wanted.images)
        paid[name] = cost.paid(status, guided, wanted.images, seen)
        each_s = elastic.worth(wanted, seen)(table)
        charged[name] = paid[name] + cost.full_s(status, guided, wanted.images, seen) * each_s
    worth = elastic.worth(wanted, seen)
    known = options(list(seen.stages), wanted, seen, quality, worth)
    in_time = Asked("price", finish_s=wanted.deadline_s)
    same(known.cheapest(), best(wanted, seen, quality, charged, in_time))
    alone = replace(in_time, second=False)
    assert search(known.good, known.known, alone) == known.cheapest()[:1]
    first = known.earliest()
    same(first, best(wanted, seen, quality, paid, Asked("finish")))
    for found in first[:1]:
        for asked in (
            Asked("finish", price=2 * found.price),
            Asked("bound", finish_s=1.5 * found.finish_s),
            Asked("bound", finish_s=2 * found.finish_s, price=3 * found.price),
        ):
            same(
                search(known.good, known.known, asked), best(wanted, seen, quality, charged, asked)
            )


def same(found: list[Found], expected: list[Best]) -> None:
    assert [plan_of(f) for f in found] == [plan for *_, plan in expected]
    for f, (price, finish_s, _) in zip(found, expected, strict=True):
        assert (f.price, f.finish_s) == pytest.approx((price, finish_s), abs=2e-9)


@pytest.mark.parametrize("seed", range(often(50, 1000)))
def test_it_finds_what_a_look_at_every_plan_finds(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether few plans are worked out at once, or told apart by bounds as many are."""
    monkeypatch.setattr(search_module, "ALL", seed % 2 * search_module.ALL)
    chance = random.Random(seed)
    steps = chance.choice([1, 2, 3, 7, 12])
    quality = cast(QualityTable, Drawn(chance))
    same_as_brute_force(drawn_request(chance, steps), drawn_view(chance, 3, steps), quality)


@long
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.timeout(600)
def test_it_finds_the_same_among_fourteen_million(seed: int) -> None:
    chance = random.Random(seed)
    seen = drawn_view(chance, 8, 50, least=8)
    asked = drawn_request(chance, 50)
    same_as_brute_force(asked, seen, cast(QualityTable, Drawn(chance)))


def test_a_stage_may_say_no() -> None:
    """Premises: it takes no more than so many steps of what comes after the first half second."""
    chance = random.Random(5)
    seen, wanted = drawn_view(chance, 2, 12, least=2), request(steps=12, quality_floor=0.0)
    known = options(list(seen.stages), wanted, seen, cast(QualityTable, Drawn(chance)))

    def allows(stage: Counts, comes_s: Floats, steps: Counts) -> Bools:
        return (stage >= len(seen.stages)) | (comes_s > 0.5) | (steps <= 4)

    barred = replace(known.known, allows=allows)
    (found, *_) = search(known.good, barred, Asked("finish", barred=True))
    assert found.steps[0] <= 4
    assert search(known.good, barred, Asked("finish"))[0].finish_s < found.finish_s


@pytest.mark.parametrize("by", ["price", "finish", "bound"])
@pytest.mark.parametrize("seed", range(10))
def test_who_says_no_may_be_asked_at_last(
    seed: int, by: Literal["price", "finish", "bound"]
) -> None:
    """As if all had been asked of every plan. Premises: no more than so many steps of what comes
    before a moment, by stage."""
    chance = random.Random(seed)
    seen, wanted = drawn_view(chance, 2, 12, least=1), request(steps=12, quality_floor=0.5)
    known = options(list(seen.stages), wanted, seen, cast(QualityTable, Drawn(chance)))
    most = np.array([chance.choice([0, 3, 8, 12]) for _ in seen.stages])
    until_s = np.array([chance.uniform(0.0, 3.0) for _ in seen.stages])

    def allows(stage: Counts, comes_s: Floats, steps: Counts) -> Bools:
        return (comes_s > until_s[stage]) | (steps <= most[stage])

    barred, asked = replace(known.known, allows=allows), Asked(by, finish_s=30.0, barred=True)
    eager = search_module.best_of(known.good, barred, asked)
    assert search(known.good, barred, asked) == eager
