"""The packet: everything that travels at a hand-off.

    b"DEPK" | version u16 | body length u32 | BLAKE2b-128 of the body | body

The body is safetensors: the latent and the solver's history as tensors, carried by the packet's
codec, all else as JSON in its metadata. Nothing of it is ever unpickled. A packet without a latent
is a request on its way to its first stage, which resolves the schedule and draws the noise.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from diffusion_edge.codec import decode, encode, part_names
from diffusion_edge.errors import (
    DamagedPacket,
    InvalidPlan,
    InvalidTensor,
    NotOffered,
    OversizedPacket,
    TruncatedPacket,
    UnknownVersion,
    UnsupportedSolver,
    WrongChecksum,
    WrongLatentSpace,
    WrongPlan,
    WrongPosition,
)
from diffusion_edge.plan import EXACT, MAX_GUIDANCE, MAX_STEPS, Codec, Plan, Span
from diffusion_edge.request import NEVER, ImageRequest, Times
from diffusion_edge.schedule import Prediction, Scaling, Schedule
from diffusion_edge.solver import build_table

VERSION = 3
MAX_BYTES = 64 * 1024 * 1024
MAX_HEADER = 1024 * 1024
_MAGIC = b"DEPK"
_HEAD = struct.Struct("<4sHI16s")
_HISTORY_LIMIT = 3
_ROUNDING = 1.01
"""Levels are resolved elsewhere, by another version, and may be a little above the bounds here."""


@dataclass(frozen=True)
class Packet:
    """A trajectory between two steps, and what is needed to go on with it anywhere.

    position: the step that comes next. plan: the spans that are left; it starts at `position`.
    latent: float32 (1, ...), or None before the first step, together with `schedule`.
    history: the solver's tensors, each of the latent's shape. codec: how the tensors are carried;
    here they are always float32. left: on a clock that starts when the packet is written, so that
    nodes' clocks need not agree; what the way takes is not counted.
    """

    request_id: str
    prompt: str
    negative_prompt: str
    guidance: float
    width: int
    height: int
    solver: str
    steps: int
    seed: int
    position: int
    plan: Plan
    latent_space: str
    image: int = 0
    attempt: int = 0
    left: Times = NEVER
    trace: Mapping[str, str] | None = None
    schedule: Schedule | None = None
    latent: Tensor | None = None
    history: tuple[Tensor, ...] = ()
    codec: Codec = EXACT

    @property
    def guidance_now(self) -> float:
        """Of the span that comes next, which may have its own."""
        own = self.plan.spans[0].guidance
        return self.guidance if own is None else own


@dataclass(frozen=True)
class Offer:
    """What a stage's family makes; whatever a packet's checksum says, it can ask for no more.

    allows: whether it makes pictures of a width and a height. latent_shape: of their latents,
    without the batch. timestep, sigma: the largest that its models have learned.
    """

    latent_space: str
    allows: Callable[[int, int], bool]
    latent_shape: Callable[[int, int], tuple[int, ...]]
    solvers: tuple[str, ...]
    prediction: Prediction
    timestep: float
    sigma: float


def new_packet(
    request: ImageRequest,
    plan: Plan,
    image: int,
    latent_space: str,
    left: Times = NEVER,
) -> Packet:
    """Image `image` of a request, before its first step; its seed is request.seed + image."""
    return Packet(
        request_id=request.request_id,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        guidance=request.guidance,
        width=request.width,
        height=request.height,
        solver=request.solver,
        steps=request.steps,
        seed=request.seed + image,
        position=plan.start,
        plan=plan,
        latent_space=latent_space,
        image=image,
        left=left,
    )


def predicted_bytes(
    shape: Sequence[int], history: int, request: ImageRequest, codec: Codec = EXACT
) -> int:
    """Bytes of a packet at a hand-off, to within a few hundred.

    shape: the latent's, channels first and without the batch. A schedule whose levels are not
    simply those on either side of each step has 20 or 40 bytes a step more.
    """
    prompts = len(request.prompt.encode()) + len(request.negative_prompt.encode())
    return tensor_bytes(shape, history, codec) + prompts + 25 * request.steps + 880


def tensor_bytes(shape: Sequence[int], history: int, codec: Codec) -> int:
    """Bytes of a latent of this shape in a packet, and of as large tensors of history."""
    each = {"exact": 4, "bf16": 2, "int8": 1}[codec] * math.prod(shape)
    scales = 4 * shape[0] + 80 if codec == "int8" else 0
    return (each + scales) * (1 + history)


# ---------------------------------------------------------------------------- writing


def write(packet: Packet) -> bytes:
    """The packet's bytes. Raises the PacketError that `read` would raise of them."""
    _check(packet)
    parts: dict[str, Tensor] = {}
    for name, tensor in _tensors(packet).items():
        parts |= encode(name, tensor.detach(), packet.codec)
    parts = {name: part.cpu().contiguous() for name, part in parts.items()}
    try:
        header = _Header.of(packet).model_dump_json(exclude_none=True)
    except ValidationError as error:
        raise _told(error) from None
    body = save_tensors(parts, metadata={"packet": header})
    if len(body) > MAX_BYTES or _header_bytes(body) > MAX_HEADER:
        raise OversizedPacket(
            f"the packet has {len(body)} bytes, {_header_bytes(body)} of them in its header; the "
            f"limits are {MAX_BYTES} and {MAX_HEADER}"
        )
    return _HEAD.pack(_MAGIC, VERSION, len(body), _digest(body)) + body


def _tensors(packet: Packet) -> dict[str, Tensor]:
    tensors = {f"history{number}": tensor for number, tensor in enumerate(packet.history)}
    return tensors if packet.latent is None else {"latent": packet.latent} | tensors


def _header_bytes(body: bytes) -> int:
    """The length of the safetensors header, as the body's first bytes say it."""
    length: int = struct.unpack_from("<Q", body)[0]
    return length


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


# ---------------------------------------------------------------------------- reading


def read(data: bytes, latent_space: str) -> Packet:
    """The packet in `data`, fit for a family with this latent space, or a PacketError."""
    return _read(data, latent_space, lambda header, shapes: None)


def take(data: bytes, offer: Offer) -> Packet:
    """As `read`, and NotOffered for what the family does not make, before it costs anything."""

    def check(header: _Header, shapes: _Shapes) -> None:
        _check_offered(header, offer)
        _check_shapes(shapes, offer.latent_shape(header.width, header.height))

    return _read(data, offer.latent_space, check)


_Shapes = Mapping[str, Sequence[int]]
"""Of a packet's tensors, the batch first, as its head has them."""


def _read(data: bytes, latent_space: str, check: Callable[[_Header, _Shapes], None]) -> Packet:
    body = _body(data)
    try:
        header, shapes = _heads(body)
        if header.latent_space != latent_space:
            raise WrongLatentSpace(
                f"the packet's latent space is {header.latent_space[:12]!r}, this stage works in "
                f"{latent_space[:12]!r}; a hand-off needs stages that share one VAE"
            )
        check(header, shapes)
        packet = header.packet(load_tensors(body))
    except ValidationError as error:
        raise _told(error) from None
    except InvalidPlan as error:
        raise WrongPlan(f"the packet's plan is wrong: {error.message}") from None
    except (
        struct.error,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        AssertionError,  # of safetensors, as the next two are
        RuntimeError,  # also a RecursionError of deeply nested JSON
        SafetensorError,
    ):
        raise DamagedPacket("the packet's body cannot be read") from None
    _check(packet)
    return packet


def _body(data: bytes) -> bytes:
    if len(data) > MAX_BYTES + _HEAD.size:
        raise OversizedPacket(f"the packet has {len(data)} bytes; the limit is {MAX_BYTES}")
    if data[:4] != _MAGIC[: len(data)]:
        raise DamagedPacket("the bytes are not a packet: the head is missing")
    if len(data) < _HEAD.size:
        raise TruncatedPacket(f"the packet ends after {len(data)} bytes, within its head")
    _, version, length, digest = _HEAD.unpack_from(data)
    if version != VERSION:
        raise UnknownVersion(f"packet version {version} is not understood; this is {VERSION}")
    body = data[_HEAD.size :]
    if len(body) < length:
        raise TruncatedPacket(f"the packet should have {length} bytes of body and has {len(body)}")
    if len(body) > length:
        raise DamagedPacket(f"the packet has {len(body) - length} bytes more than its head says")
    if _digest(body) != digest:
        raise WrongChecksum("the packet's checksum does not match its content")
    return body


def _heads(body: bytes) -> tuple[_Header, _Shapes]:
    """The packet's JSON, which is a text in the safetensors header, and the shapes beside it."""
    length = _header_bytes(body)
    if length > min(MAX_HEADER, len(body) - 8):
        raise DamagedPacket(f"the header says that it has {length} bytes; that is too many")
    header = _STRICT_JSON.decode(str(body[8 : 8 + length], "utf-8"))
    text: str = header.pop("__metadata__")["packet"]
    _STRICT_JSON.decode(text)
    shapes = {name: tensor["shape"] for name, tensor in header.items()}
    values = sum(math.prod(s) for name, s in shapes.items() if not name.endswith(".scale"))
    if 4 * values > MAX_BYTES and values <= len(body):  # more than there can be is not so
        raise OversizedPacket(f"the packet's tensors have more than {MAX_BYTES} bytes as float32")
    return _Header.model_validate_json(text), shapes


def _check_offered(header: _Header, offer: Offer) -> None:
    """Raises NotOffered for what the family does not make."""
    if not offer.allows(header.width, header.height):
        raise NotOffered(
            f"the packet is of a picture of {header.width}x{header.height}; this stage's family "
            "makes no such size"
        )
    if header.solver not in offer.solvers:
        raise NotOffered(
            f"the packet's solver {header.solver!r} is not one of this stage's family: "
            f"{', '.join(offer.solvers)}"
        )
    if header.schedule is not None:
        _check_levels(header.schedule, offer)


def _check_levels(schedule: _Schedule, offer: Offer) -> None:
    if schedule.prediction != offer.prediction:
        raise NotOffered(
            f"the packet's schedule is for models of {schedule.prediction}, this stage's are of "
            f"{offer.prediction}"
        )
    sigmas = (*schedule.sigmas, *(schedule.origins or ()), *(schedule.targets or ()))
    for name, values, most in (
        ("timestep", schedule.timesteps, offer.timestep),
        ("sigma", sigmas, offer.sigma),
        ("initial scale", (schedule.initial_scale,), 1 + offer.sigma),
    ):
        if not 0 <= min(values) <= max(values) <= _ROUNDING * most:
            raise NotOffered(
                f"the packet has a {name} from {min(values):g} to {max(values):g}; this stage's "
                f"models know 0 to {most:g}"
            )


def _check_shapes(shapes: _Shapes, shape: tuple[int, ...]) -> None:
    """A scale of int8 has a value for each channel; all else has the latent's shape."""
    for name, found in shapes.items():
        right = list(shape[:1]) if name.endswith(".scale") else [1, *shape]
        if list(found) != right:
            raise InvalidTensor(
                f"the packet's {name[:40]} has the shape {str(found)[:100]}; a latent of this "
                f"stage's family has {right} for the packet's size"
            )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice, and readers differ in which one counts")
    return found


_STRICT_JSON = json.JSONDecoder(object_pairs_hook=_once)


def _told(error: ValidationError) -> DamagedPacket:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:100] or "header"
    return DamagedPacket(f"the packet's field {where!r} is wrong: {first['msg']}")


def _check(packet: Packet) -> None:
    """What holds of any packet, before it is written and after it is read."""
    tensors = _tensors(packet)
    for tensor in tensors.values():
        if packet.latent is None or tensor.shape != packet.latent.shape:
            raise InvalidTensor("the history's shape is not the latent's")
    if sum(4 * tensor.numel() for tensor in tensors.values()) > MAX_BYTES:
        raise OversizedPacket(f"the packet's tensors have more than {MAX_BYTES} bytes as float32")
    started = packet.latent is not None
    if started != (packet.schedule is not None) or (not started and packet.position != 0):
        raise WrongPosition("a started trajectory has a latent and a schedule, a new one neither")
    if packet.schedule is not None:
        _check_schedule(packet, packet.schedule)
    if not 0 <= packet.position < packet.steps:
        raise WrongPosition(
            f"position {packet.position} is outside the schedule of {packet.steps} steps"
        )
    if packet.plan.start != packet.position:
        raise WrongPlan(
            f"the plan goes on at step {packet.plan.start}, the trajectory stands at "
            f"{packet.position}"
        )
    if packet.plan.stop != packet.steps:
        raise WrongPlan(f"the plan ends at step {packet.plan.stop} of {packet.steps}")


def _check_schedule(packet: Packet, schedule: Schedule) -> None:
    """The solver must be able to step on the schedule, and to go on with this history."""
    if schedule.steps != packet.steps:
        raise WrongPosition(
            f"the schedule has {schedule.steps} steps, the packet says {packet.steps}"
        )
    try:
        table = build_table(packet.solver, schedule)
    except UnsupportedSolver as error:
        raise DamagedPacket(f"the packet's solver is wrong: {error.message}") from None
    except (ArithmeticError, ValueError):
        raise DamagedPacket(f"{packet.solver} cannot step on the packet's schedule") from None
    if not torch.isfinite(table.weights).all():
        raise DamagedPacket(f"{packet.solver} cannot step on the packet's schedule")
    if len(packet.history) != table.history:
        raise InvalidTensor(
            f"{packet.solver} keeps {table.history} history tensors, the packet has "
            f"{len(packet.history)}"
        )


# ---------------------------------------------------------------------------- JSON form


Text = Annotated[str, Field(max_length=20_000)]
Name = Annotated[str, Field(max_length=200)]
Step = Annotated[int, Field(ge=0, le=MAX_STEPS)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Left = Annotated[float, Field(ge=-1e9, le=1e9)]
Pixels = Annotated[int, Field(gt=0, le=2**14)]
Guidance = Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Span(_Strict):
    stage: Name
    start: Step
    stop: Step
    guidance: Guidance | None = None


class _Schedule(_Strict):
    """`origins` and `targets` are left out where they are the sigmas on either side of a step."""

    sigmas: tuple[float, ...] = Field(max_length=MAX_STEPS + 1)
    origins: tuple[float, ...] | None = Field(None, max_length=MAX_STEPS)
    targets: tuple[float, ...] | None = Field(None, max_length=MAX_STEPS)
    timesteps: tuple[float, ...] = Field(min_length=1, max_length=MAX_STEPS)
    prediction: Prediction
    scaling: Scaling
    initial_scale: float

    @classmethod
    def of(cls, schedule: Schedule) -> _Schedule:
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


_OWN_FORM = ("spans", "codecs", "reason", "history", "schedule", "due_in_s", "given_up_in_s")


class _Header(_Strict):
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
    spans: tuple[_Span, ...] = Field(min_length=1, max_length=MAX_STEPS)
    codecs: tuple[Codec, ...] = Field(max_length=MAX_STEPS)
    reason: Text
    latent_space: Name
    codec: Codec
    history: int = Field(ge=0, le=_HISTORY_LIMIT)
    schedule: _Schedule | None = None

    @classmethod
    def of(cls, packet: Packet) -> _Header:
        fields: dict[str, Any] = {
            name: getattr(packet, name) for name in cls.model_fields if hasattr(packet, name)
        }
        spans = tuple(
            _Span(stage=s.stage, start=s.start, stop=s.stop, guidance=s.guidance)
            for s in packet.plan.spans
        )
        return cls.model_validate(
            fields
            | {
                "spans": spans,
                "codecs": packet.plan.codecs,
                "reason": packet.plan.reason,
                "history": len(packet.history),
                "due_in_s": packet.left.due,
                "given_up_in_s": packet.left.give_up,
                "schedule": _Schedule.of(packet.schedule) if packet.schedule else None,
            }
        )

    def packet(self, parts: dict[str, Tensor]) -> Packet:
        """With the tensors that `parts` carry: a latent, if there is one, and the history."""
        past = [f"history{number}" for number in range(self.history)]
        names = ["latent", *past] if "latent" in parts else past
        if set(parts) != {part for name in names for part in part_names(name, self.codec)}:
            raise InvalidTensor(f"the packet's tensors are not those that its {self.codec} needs")
        tensors = {name: decode(name, parts, self.codec) for name in names}
        shared = {
            name: getattr(self, name) for name in type(self).model_fields if name not in _OWN_FORM
        }
        return Packet(
            **shared,
            left=Times(self.due_in_s, self.given_up_in_s),
            plan=Plan(
                tuple(Span(s.stage, s.start, s.stop, s.guidance) for s in self.spans),
                self.codecs,
                self.reason,
            ),
            schedule=self.schedule.schedule() if self.schedule else None,
            latent=tensors.get("latent"),
            history=tuple(tensors[name] for name in past),
        )
