"""What is asked for, and what comes back: events of a run, and the records of what it took."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from diffusion_edge.plan import EXACT, Codec, Plan, Tier

AskedCodec = Literal["exact", "bf16", "int8", "auto"]
Late = Literal["serve", "refuse"]
"""What a request wants that cannot be in time: to be served late, or to be refused at once."""


@dataclass(frozen=True)
class Times:
    """When a picture is due and when its work is given up, in seconds of one clock.

    Due times order the work; None leaves them to each stage. A picture that is late is still made
    until its work is given up; None is never.
    """

    due: float | None = None
    give_up: float | None = None

    def shifted(self, seconds: float) -> Times:
        """The same on a clock that is `seconds` ahead."""
        return Times(
            None if self.due is None else self.due + seconds,
            None if self.give_up is None else self.give_up + seconds,
        )


NEVER = Times()


@dataclass(frozen=True)
class ImageRequest:
    """What is asked for, with every default settled. `steps` counts what the solver resolves;
    `free_steps` has all numbers that the router may choose from, none where one was asked for.

    `codec` is that of every hop; `auto` lets the family's measured losses decide. late: what is
    wanted where it cannot be in time.
    """

    prompt: str
    family: str
    steps: int
    seed: int
    solver: str
    guidance: float
    width: int
    height: int
    negative_prompt: str = ""
    images: int = 1
    deadline_s: float = 60.0
    quality_floor: float = 0.95
    policy: str = "elastic"
    plan: Plan | None = None
    codec: AskedCodec = EXACT
    request_id: str = ""
    free_steps: tuple[int, ...] = ()
    late: Late = "serve"

    @property
    def most_steps(self) -> int:
        return max(self.steps, *self.free_steps, 0)

    def in_steps(self, steps: int) -> ImageRequest:
        """With one of the numbers that it may have."""
        return self if steps == self.steps else replace(self, steps=steps)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height


@dataclass(frozen=True)
class Picture:
    """8-bit RGB, row by row."""

    width: int
    height: int
    rgb: bytes = field(repr=False)


@dataclass(frozen=True)
class SpanRecord:
    """What a span took. `emulated_s` of its seconds were slept to act as slower hardware. `ahead_s`
    went by before it came, encoding its texts; `encode_s` are those of encoding after that.
    `execution`: how the model was run."""

    stage: str
    tier: Tier
    start: int
    stop: int
    queue_s: float
    run_s: float
    encode_s: float
    decode_s: float
    emulated_s: float = 0.0
    overruns: int = 0
    ahead_s: float = 0.0
    execution: str = "eager"


@dataclass(frozen=True)
class HopRecord:
    """What a hand-off took. `emulated_s` of `seconds` were slept to act as a slower link.

    `nbytes` were sent; `emulated_bytes` are what an emulated link was charged with, if others.
    `queue_s` of `emulated_s` went by while packets before it passed over that link.
    """

    source: str
    target: str
    nbytes: int
    seconds: float
    codec: Codec
    emulated_s: float = 0.0
    emulated_bytes: int | None = None
    queue_s: float = 0.0

    @property
    def link_bytes(self) -> int:
        """What the link's seconds were for."""
        return self.nbytes if self.emulated_bytes is None else self.emulated_bytes


# ---------------------------------------------------------------------------- events of a run


@dataclass(frozen=True)
class Accepted:
    """A stage has taken the packet into its queue."""

    stage: str


@dataclass(frozen=True)
class Progress:
    """A span is done: the trajectory stands at `position`."""

    stage: str
    position: int


@dataclass(frozen=True)
class Done:
    """The last span is done and decoded."""

    picture: Picture
    spans: tuple[SpanRecord, ...]
    hops: tuple[HopRecord, ...]
    warnings: tuple[str, ...] = ()


Event = Accepted | Progress | Done


class Transport(Protocol):
    """How packet bytes reach a stage. Closing the iterator cancels the work behind it."""

    def run(self, stage: str, packet: bytes) -> AsyncIterator[Event]: ...
