"""A scenario file, read strictly: what is simulated, by whose rules, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from diffusion_edge.config import Replan
from diffusion_edge.errors import EdgeError
from diffusion_edge.plan import Codec, Plan, Tier
from diffusion_edge.routing.board import EVERY_S
from diffusion_edge.routing.policies import policy
from diffusion_edge.strict import Disagreement, Strict, read_yaml, validate

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]


class _Kinds(Strict):
    """A record of one of several kinds, some of whose keys belong to some kinds only."""

    kind: str

    def needs(self, kinds: Mapping[str, str]) -> None:
        """kinds: by key, those that it belongs to, with a space between; one that ends in `!` needs
        it."""
        mine = self.kind
        for key, names in kinds.items():
            known = [name.rstrip("!") for name in names.split()]
            if key in self.model_fields_set and mine not in known:
                raise Disagreement((key,), f"{mine!r} has no such key; {', '.join(known)} have")
            if f"{mine}!" in names.split() and key not in self.model_fields_set:
                raise Disagreement((key,), f"{mine!r} needs this key")


class Arrivals(_Kinds):
    """When requests come: `rate` a second in the mean.

    bursty: in bursts of `burst` at once. diurnal: up and down by `swing` times the mean once in
    `period_s`, lowest at first. crowd: `times` as many as otherwise from `at_s` on, for `for_s`.
    trace: as the column t_s of `file` says; with a rate every gap is as much longer or shorter. It
    begins again when it ends.
    """

    kind: Literal["poisson", "bursty", "diurnal", "crowd", "trace"] = "poisson"
    rate: Positive | None = None
    burst: Count = 8
    swing: Annotated[float, Field(gt=0, le=1)] = 0.8
    period_s: Positive = 600.0
    times: Positive = 5.0
    at_s: Seconds = 60.0
    for_s: Positive = 60.0
    file: Name | None = None

    @model_validator(mode="after")
    def _is_of_a_kind(self) -> Arrivals:
        crowd = "crowd"
        self.needs(
            {
                "rate": "poisson! bursty! diurnal! crowd! trace",
                "burst": "bursty",
                "swing": "diurnal",
                "period_s": "diurnal",
                "times": crowd,
                "at_s": crowd,
                "for_s": crowd,
                "file": "trace!",
            }
        )
        return self


def _mixed(value: type[Any], least: float) -> PlainValidator:
    """One value, or a mapping of values to shares."""

    def read(given: object) -> dict[Any, float]:
        shares = given if isinstance(given, Mapping) else {given: 1.0}
        for each, share in shares.items():
            if not _is(each, value) or (isinstance(each, int | float) and each < least):
                raise ValueError(f"{each!r} is not {_told(value, least)}")
            if not _is(share, float) or share <= 0:
                raise ValueError(f"the share of {each!r} should be a number above 0, not {share!r}")
        if not shares:
            raise ValueError("there should be one value at least")
        return dict(shares)

    return PlainValidator(read)


def _is(given: object, wanted: type[Any]) -> bool:
    if isinstance(given, bool):
        return False
    return isinstance(given, int | float) if wanted is float else isinstance(given, wanted)


def _told(value: type[Any], least: float) -> str:
    return "a word" if value is str else f"a number from {least:g} on"


class Requests(Strict):
    """What is asked for, `count` times. steps, size, images, deadline_s, quality_floor and late:
    one value for all requests, or some by their shares, such as {20: 0.8, 10: 0.2}; size is the
    edge in pixels. What is left out is as a server takes it, but the number of steps is the
    family's. free_steps: policies that choose the number of steps may have any that the quality
    table knows, beside that one, as of a server's request that leaves it out."""

    count: Count = 400
    free_steps: bool = False
    steps: Annotated[dict[int, float] | None, _mixed(int, 1)] = None
    size: Annotated[dict[int, float] | None, _mixed(int, 1)] = None
    images: Annotated[dict[int, float], _mixed(int, 1)] = Field(default_factory=lambda: {1: 1.0})
    deadline_s: Annotated[dict[float, float] | None, _mixed(float, 0.001)] = None
    quality_floor: Annotated[dict[float, float] | None, _mixed(float, 0)] = None
    late: Annotated[dict[str, float], _mixed(str, 0)] = Field(
        default_factory=lambda: {"serve": 1.0}
    )
    codec: Codec | None = None

    @model_validator(mode="after")
    def _late_is_known(self) -> Requests:
        for each in self.late:
            if each not in ("serve", "refuse"):
                raise Disagreement(("late",), f"{each!r} is not one of serve, refuse")
        return self


class LinkScenario(_Kinds):
    """How a link goes, both ways alike, whatever the config says of it.

    constant: `bytes_per_s`. step: the rates `steps` has, from its times on. markov: one of `rates`
    after another, each for `stay_s` in the mean. outage: `bytes_per_s`, but nothing passes for the
    last `for_s` of every `every_s`. trace: as `file` says, times `factor`; the way back begins in
    its middle. stated: what the router takes the rate for at first; the mean without it.
    """

    between: Annotated[tuple[Name, Name], Field(strict=False)]
    kind: Literal["constant", "step", "markov", "outage", "trace"] = "constant"
    delay_s: Seconds = 0.0
    bytes_per_s: Positive | None = None
    steps: Annotated[dict[Seconds, Seconds], Field(min_length=1)] | None = None
    rates: Annotated[list[Seconds], Field(min_length=2)] | None = None
    stay_s: Positive | None = None
    every_s: Positive | None = None
    for_s: Positive | None = None
    file: Name | None = None
    factor: Positive = 1.0
    stated: Positive | None = None

    @model_validator(mode="after")
    def _is_of_a_kind(self) -> LinkScenario:
        self.needs(
            {
                "bytes_per_s": "constant! outage!",
                "steps": "step!",
                "rates": "markov!",
                "stay_s": "markov!",
                "every_s": "outage!",
                "for_s": "outage!",
                "file": "trace!",
                "factor": "trace",
            }
        )
        if self.steps is not None and 0.0 not in self.steps:
            raise Disagreement(("steps",), "the rate from 0 s on is missing")
        if self.for_s is not None and self.every_s is not None and self.for_s >= self.every_s:
            raise Disagreement(("for_s",), f"should be less than every_s, {self.every_s:g}")
        return self


class FaultScenario(_Kinds):
    """From `at_s` on, for `for_s`. lost: a stage is not there, and what it held is lost. slow: it
    takes `times` as long. cut: nothing passes over a link, either way."""

    kind: Literal["lost", "slow", "cut"]
    at_s: Seconds
    for_s: Positive
    stage: Name | None = None
    times: Positive = 3.0
    between: Annotated[tuple[Name, Name], Field(strict=False)] | None = None

    @model_validator(mode="after")
    def _is_of_a_kind(self) -> FaultScenario:
        self.needs({"stage": "lost! slow!", "times": "slow", "between": "cut!"})
        return self


class Sites(Strict):
    """How many there are of every stage of the config, by its name, and how many of each a request
    may have; who asks for it is at one of the stages that `sees` has one of."""

    count: Annotated[dict[Name, Count], Field(min_length=1)]
    sees: dict[Name, Count] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agree(self) -> Sites:
        for name, number in self.sees.items():
            if number > self.count.get(name, 0):
                message = f"a request cannot have {number} of {self.count.get(name, 0)}"
                raise Disagreement(("sees", name), message)
        return self


FORESEE = ("hindsight", "oracle")
"""Policies of simulations alone, which know the future (`sim.foresight`)."""


def _policy(given: object) -> str:
    """A policy's name, or a plan that all requests take."""
    if not isinstance(given, str):
        raise ValueError(f"{given!r} is not a policy's name, nor a plan such as edge:14,cloud:6")
    try:
        if ":" in given:
            Plan.parse(given)
        elif given not in FORESEE:
            policy(given)
    except EdgeError as error:
        raise ValueError(error.message) from None
    return given


class Scenario(Strict):
    """config: a Serve config, whose stages, links, prices and defaults are simulated. sites: left
    out, one of each stage. links: others than the config's. policies: names, or plans that all
    requests take. seeds: a run of each policy with each. report_s: between a stage's reports.
    measure_links: whether hops teach what links take; left out, as the config says. signals: a
    recording of what policies that choose again look at (`profile --signals`). anywhere: whether
    recordings of links and arrivals begin at a moment that is drawn from the seed, and not at their
    start; of arrivals so many are taken then as are asked for, which have the stated rate.
    replan: left out, as the config says."""

    config: Name = "serve_configs/local.yaml"
    title: str = ""
    policies: Annotated[list[Annotated[str, PlainValidator(_policy)]], Field(min_length=1)] = Field(
        default_factory=lambda: ["elastic"]
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        default_factory=lambda: [0]
    )
    arrivals: Arrivals
    requests: Requests = Requests()
    links: list[LinkScenario] = Field(default_factory=list)
    faults: list[FaultScenario] = Field(default_factory=list)
    sites: Sites | None = None
    prices_per_s: dict[Tier, Seconds] | None = None
    report_s: Positive = EVERY_S
    measure_links: bool | None = None
    signals: Name | None = None
    anywhere: bool = False
    replan: Replan | None = None


def load(
    path: Path,
    policies: Sequence[str] | None = None,
    count: int | None = None,
    rate: float | None = None,
) -> Scenario:
    """policies, count, rate: instead of the file's. Raises ConfigError with the first thing that is
    wrong."""
    data, document = read_yaml(path)
    if policies and isinstance(data, dict):
        data["policies"] = list(policies)
    if count and isinstance(data, dict):
        data["requests"] = (data.get("requests") or {}) | {"count": count}
    if rate and isinstance(data, dict):
        data["arrivals"] = (data.get("arrivals") or {}) | {"rate": rate}
    return validate(Scenario, data, str(path), document)
