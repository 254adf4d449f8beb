"""The header of a packet, as its JSON has it: all that travels but the tensors."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from diffusion_edge.errors import DamagedPacket
from diffusion_edge.plan import MAX_GUIDANCE, MAX_STEPS, Codec, Plan, Span
from diffusion_edge.schedule import Prediction, Scaling, Schedule

MAX_HISTORY = 3
Text = Annotated[str, Field(max_length=20_000)]
Name = Annotated[str, Field(max_length=200)]
Step = Annotated[int, Field(ge=0, le=MAX_STEPS)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Left = Annotated[float, Field(ge=-1e9, le=1e9)]
Pixels = Annotated[int, Field(gt=0, le=2**14)]
Guidance = Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class HeaderSpan(_Strict):
    stage: Name
    start: Step
    stop: Step
    guidance: Guidance | None = None

    @classmethod
    def of(cls, span: Span) -> HeaderSpan:
        return cls(stage=span.stage, start=span.start, stop=span.stop, guidance=span.guidance)

    def span(self) -> Span:
        return Span(self.stage, self.start, self.stop, self.guidance)


class HeaderSchedule(_Strict):
    """`origins` and `targets` are left out where they are the sigmas on either side of a step."""

    sigmas: tuple[float, ...] = Field(max_length=MAX_STEPS + 1)
    origins: tuple[float, ...] | None = Field(None, max_length=MAX_STEPS)
    targets: tuple[float, ...] | None = Field(None, max_length=MAX_STEPS)
    timesteps: tuple[float, ...] = Field(min_length=1, max_length=MAX_STEPS)
    prediction: Prediction
    scaling: Scaling
    initial_scale: float

    @classmethod
    def of(cls, schedule: Schedule) -> HeaderSchedule:
        fields = {name: getattr(schedule, name) for name in cls.model_fields}
        if schedule.origins == schedule.sigmas[:-1]:
            del fields["origins"]
        if schedule.targets == schedule.sigmas[1:]:
            del fields["targets"]
        return cls(**fields)

    def schedule(self) -> Schedule:
        origins = self.sigmas[:-1] if self.origins is None else self.origins
        targets = self.sigmas[1:] if self.targets is None else self.targets
        steps = len(self.timesteps)
        if not len(origins) == len(targets) == len(self.sigmas) - 1 == steps:
            raise DamagedPacket("the lists of the packet's schedule differ in length")
        if min(*self.sigmas[:-1], *origins) <= 0 or min(*targets, self.sigmas[-1]) < 0:
            raise DamagedPacket("the packet's schedule has a sigma that is not positive")
        given = {"origins": origins, "targets": targets}
        return Schedule(**{name: getattr(self, name) for name in type(self).model_fields} | given)


class Header(_Strict):
    request_id: Name
    image: Count
    attempt: Count
    due_in_s: Left | None = None
    given_up_in_s: Left | None = None
    trace: dict[Name, Name] | None = Field(None, max_length=16)
    prompt: Text
    negative_prompt: Text
    guidance: Guidance
    width: Pixels
    height: Pixels
    solver: Name
    steps: int = Field(ge=1, le=MAX_STEPS)
    seed: int = Field(ge=0, lt=2**64)
    position: int = Field(gt=-(2**31), lt=2**31)
    spans: tuple[HeaderSpan, ...] = Field(min_length=1, max_length=MAX_STEPS)
    codecs: tuple[Codec, ...] = Field(max_length=MAX_STEPS)
    reason: Text
    latent_space: Name
    codec: Codec
    history: int = Field(ge=0, le=MAX_HISTORY)
    execution: Name | None = None
    schedule: HeaderSchedule | None = None

    def plan(self) -> Plan:
        return Plan(tuple(span.span() for span in self.spans), self.codecs, self.reason)
