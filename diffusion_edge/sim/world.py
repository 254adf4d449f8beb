"""What is simulated: stages, the links between them, and who sees which of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from diffusion_edge.batching import FIXED_ROWS
from diffusion_edge.config import Replan, StageConfig
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.plan import Plan, Span, Tier
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.board import EVERY_S, Carriage
from diffusion_edge.routing.links.taken import Pair
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.sim.faults import Fault
from diffusion_edge.sim.replay import Replay
from diffusion_edge.sim.ways import Rates
from diffusion_edge.view import Link, StageStatus


@dataclass(frozen=True, eq=False)
class Group:
    """Those who ask the same router: the stages that it sees."""

    stages: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """stages: what each reports with nothing to do, by name; those that are alike share a record,
    whose `stage` names what they are. ways: how each link goes, by (from, to); first: what routers
    are told of it at first. carriage: how a request's packet is carried. guidance: of stages whose
    models have their own. report_s: between a stage's reports. measure_links: whether hops, and
    probes of links that are quiet, teach what links take. replay: what policies that choose again
    look at. replan: how often others may.
    """

    stages: Mapping[str, StageStatus]
    ways: Mapping[Pair, Rates]
    first: Mapping[Pair, Link | None]
    groups: Sequence[Group]
    price_per_s: Mapping[Tier, float]
    carriage: Callable[[ImageRequest], Carriage]
    quality: QualityTable
    guidance: Mapping[str, float] = field(default_factory=dict)
    faults: Sequence[Fault] = ()
    report_s: float = EVERY_S
    measure_links: bool = True
    hop_timeout_s: float = 5.0
    replay: Replay | None = None
    replan: Replan = field(default_factory=Replan)

    def what(self, plan: Plan) -> str:
        """A plan by what its stages are, as `Plan.parse` reads it."""
        return ",".join(f"{self.stages[span.stage].stage}:{span.steps}" for span in plan.spans)

    def in_group(self, plan: Plan, group: Group) -> Plan:
        """A plan that says what stages are, over the first of these that a group sees. Raises
        InvalidRequest if it sees none."""
        first = {self.stages[name].stage: name for name in reversed(group.stages)}
        for span in plan.spans:
            if span.stage not in first:
                known = ", ".join(sorted(first))
                raise InvalidRequest(f"plan {plan}: there is no stage {span.stage!r} ({known})")
        spans = (Span(first[s.stage], s.start, s.stop, s.guidance) for s in plan.spans)
        return Plan(tuple(spans), plan.codecs, plan.reason)


def idle(name: str, stated: StageConfig, cells: int) -> StageStatus:
    """What a stage reports that has nothing to do, and acts out what its config states for images
    of so many cells. Raises InvalidRequest where that is nothing."""
    emulate = stated.emulate
    if emulate is None:
        raise InvalidRequest(
            f"the stage {name!r} has no `emulate`: a simulation needs the seconds that it takes"
        )
    batches = stated.batching != "off" and len(emulate.curve) > 1
    rows = stated.batch_rows
    if stated.batching == "reproducible":
        rows = rows or FIXED_ROWS
    return StageStatus(
        stage=name,
        tier=stated.tier,
        model=stated.model,
        queue_s=0.0,
        queued=0,
        capacity=stated.capacity,
        step_s={cells: emulate.curve},
        encode_s=emulate.encode_s,
        decode_s={cells: emulate.decode_s},
        resident_bytes=0,
        emulated=True,
        batches=batches,
        most_rows=rows if batches else None,
        pads=stated.batching == "reproducible",
        texts_s={1: emulate.encode_s},
        pictures_s={cells: {1: emulate.decode_s}},
    )
