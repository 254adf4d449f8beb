"""The packet: everything that travels at a hand-off.

    b"DEPK" | version u16 | body length u32 | BLAKE2b-128 of the body | body

The body is safetensors: the latent and the solver's history as tensors, all else as JSON in its
metadata. Nothing of it is ever unpickled. A packet without a latent is a request on its way to
its first stage, which resolves the schedule and draws the noise.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from diffusion_edge.errors import (
    DamagedPacket,
    InvalidPlan,
    InvalidTensor,
    OversizedPacket,
    UnknownVersion,
    WrongLatentSpace,
    WrongPosition,
)
from diffusion_edge.schedule import Prediction, Scaling, Schedule
from diffusion_edge.types import MAX_STEPS, Codec, ImageRequest, Plan, Span

VERSION = 1
MAX_BYTES = 64 * 1024 * 1024
_MAGIC = b"DEPK"
_HEAD = struct.Struct("<4sHI16s")
_HISTORY_LIMIT = 3


@dataclass(frozen=True)
class Packet:
    """A trajectory between two steps, and what is needed to go on with it anywhere.

    position: the step that comes next. plan: the spans that are left; it starts at `position`.
    latent: float32 (1, ...), or None before the first step, together with `schedule`.
    history: the solver's tensors, each of the latent's shape. deadline_unix_s: 0 for none.
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
    deadline_unix_s: float = 0.0
    trace: Mapping[str, str] | None = None
    schedule: Schedule | None = None
    latent: Tensor | None = None
    history: tuple[Tensor, ...] = ()


def new_packet(
    request: ImageRequest,
    plan: Plan,
    image: int,
    latent_space: str,
    deadline_unix_s: float = 0.0,
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
        deadline_unix_s=deadline_unix_s,
    )


def predicted_bytes(latent_elements: int, history: int, request: ImageRequest) -> int:
    """Bytes of a packet at a hand-off in the exact codec, to within a few hundred."""
    prompts = len(request.prompt.encode()) + len(request.negative_prompt.encode())
    return 4 * latent_elements * (1 + history) + prompts + 45 * request.steps + 900


# ---------------------------------------------------------------------------- writing


def write(packet: Packet) -> bytes:
    """The packet's bytes, tensors exact."""
    tensors: dict[str, Tensor] = {}
    if packet.latent is not None:
        tensors["latent"] = packet.latent.detach().cpu().contiguous()
    for number, tensor in enumerate(packet.history):
        tensors[f"history{number}"] = tensor.detach().cpu().contiguous()
    header = _Header.of(packet).model_dump_json(exclude_none=True)
    body = save_tensors(tensors, metadata={"packet": header})
    if len(body) > MAX_BYTES:
        raise OversizedPacket(f"the packet has {len(body)} bytes; the limit is {MAX_BYTES}")
    return _HEAD.pack(_MAGIC, VERSION, len(body), _digest(body)) + body


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


# ---------------------------------------------------------------------------- reading


def read(data: bytes, latent_space: str) -> Packet:
    """The packet in `data`, fit for a family with this latent space, or a PacketError."""
    packet = _checked(_header(_body(data)))
    if packet.latent_space != latent_space:
        raise WrongLatentSpace(
            f"the packet's latent space is {packet.latent_space[:12]}, this stage works in "
            f"{latent_space[:12]}; a hand-off needs stages that share one VAE"
        )
    return packet


def _body(data: bytes) -> bytes:
    if len(data) > MAX_BYTES + _HEAD.size:
        raise OversizedPacket(f"the packet has {len(data)} bytes; the limit is {MAX_BYTES}")
    if len(data) < _HEAD.size or data[:4] != _MAGIC:
        raise DamagedPacket("the bytes are not a packet: the head is missing")
    _, version, length, digest = _HEAD.unpack_from(data)
    if version != VERSION:
        raise UnknownVersion(f"packet version {version} is not understood; this is {VERSION}")
    body = data[_HEAD.size :]
    if len(body) != length:
        raise DamagedPacket(f"the packet should have {length} bytes of body and has {len(body)}")
    if _digest(body) != digest:
        raise DamagedPacket("the packet's checksum does not match its content")
    return body


def _header(body: bytes) -> Packet:
    try:
        (length,) = struct.unpack_from("<Q", body)
        metadata = json.loads(body[8 : 8 + length]).get("__metadata__", {})
        header = _Header.model_validate_json(metadata["packet"])
        tensors = load_tensors(body)
        return header.packet(tensors)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DamagedPacket(f"the packet's field {where!r} is wrong: {first['msg']}") from None
    except InvalidPlan as error:
        raise DamagedPacket(f"the packet's plan is wrong: {error.message}") from None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        raise DamagedPacket("the packet's body cannot be read") from None


def _checked(packet: Packet) -> Packet:
    """What holds between the fields of any packet that `write` made."""
    for tensor in (packet.latent, *packet.history):
        if tensor is None:
            continue
        if tensor.dtype != torch.float32 or tensor.ndim < 2 or tensor.shape[0] != 1:
            raise InvalidTensor(
                f"a packet's tensors are float32 of batch 1, not {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}"
            )
        if packet.latent is None or tensor.shape != packet.latent.shape:
            raise InvalidTensor("the history's shape is not the latent's")
        if not torch.isfinite(tensor).all():
            raise InvalidTensor("a tensor of the packet has NaN or infinite values")
    if len(packet.history) > _HISTORY_LIMIT:
        raise InvalidTensor(f"a packet has at most {_HISTORY_LIMIT} history tensors")
    started = packet.latent is not None
    if started != (packet.schedule is not None) or (not started and packet.position != 0):
        raise WrongPosition("a started trajectory has a latent and a schedule, a new one neither")
    if packet.schedule is not None and packet.schedule.steps != packet.steps:
        raise WrongPosition(
            f"the schedule has {packet.schedule.steps} steps, the packet says {packet.steps}"
        )
    if not 0 <= packet.position < packet.steps or packet.plan.stop != packet.steps:
        raise WrongPosition(
            f"position {packet.position} and plan {packet.plan} do not fit {packet.steps} steps"
        )
    if packet.plan.start != packet.position:
        raise WrongPosition(
            f"the plan goes on at step {packet.plan.start}, the trajectory stands at "
            f"{packet.position}"
        )
    return packet


# ---------------------------------------------------------------------------- JSON form


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Span(_Strict):
    stage: str = Field(max_length=200)
    start: int
    stop: int
    guidance: float | None = None


class _Schedule(_Strict):
    sigmas: tuple[float, ...] = Field(max_length=MAX_STEPS + 1)
    targets: tuple[float, ...] | None = None
    timesteps: tuple[float, ...] = Field(min_length=1, max_length=MAX_STEPS)
    prediction: Prediction
    scaling: Scaling
    initial_scale: float

    def schedule(self) -> Schedule:
        targets = self.sigmas[1:] if self.targets is None else self.targets
        if not len(targets) == len(self.timesteps) == len(self.sigmas) - 1:
            raise ValueError("the schedule's lengths differ")
        if min(self.sigmas[:-1]) <= 0 or min(targets) < 0:
            raise ValueError("a sigma is not positive")
        return Schedule(
            self.sigmas, targets, self.timesteps, self.prediction, self.scaling, self.initial_scale
        )


class _Header(_Strict):
    request_id: str = Field(max_length=200)
    image: int
    attempt: int
    deadline_unix_s: float
    trace: dict[str, str] | None = None
    prompt: str
    negative_prompt: str
    guidance: float
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    solver: str = Field(max_length=200)
    steps: int = Field(ge=1, le=MAX_STEPS)
    seed: int = Field(ge=0, lt=2**64)
    position: int
    spans: tuple[_Span, ...] = Field(min_length=1, max_length=MAX_STEPS)
    codecs: tuple[Codec, ...]
    reason: str
    latent_space: str
    history: int = Field(ge=0, le=_HISTORY_LIMIT)
    schedule: _Schedule | None = None

    @classmethod
    def of(cls, packet: Packet) -> _Header:
        fields: dict[str, Any] = {
            name: getattr(packet, name) for name in cls.model_fields if hasattr(packet, name)
        }
        schedule = packet.schedule
        if schedule is not None:
            same = schedule.targets == schedule.sigmas[1:]
            fields["schedule"] = {
                "sigmas": schedule.sigmas,
                "targets": None if same else schedule.targets,
                "timesteps": schedule.timesteps,
                "prediction": schedule.prediction,
                "scaling": schedule.scaling,
                "initial_scale": schedule.initial_scale,
            }
        spans = [
            {"stage": s.stage, "start": s.start, "stop": s.stop, "guidance": s.guidance}
            for s in packet.plan.spans
        ]
        return cls.model_validate(
            fields
            | {
                "spans": spans,
                "codecs": packet.plan.codecs,
                "reason": packet.plan.reason,
                "history": len(packet.history),
            }
        )

    def packet(self, tensors: dict[str, Tensor]) -> Packet:
        names = [f"history{n}" for n in range(self.history)]
        if set(tensors) - {"latent"} != set(names):
            raise ValueError("the tensors are not those that the header names")
        spans = tuple(Span(s.stage, s.start, s.stop, s.guidance) for s in self.spans)
        plan = Plan(spans, self.codecs, self.reason)
        shared = {
            name: getattr(self, name)
            for name in type(self).model_fields
            if name not in ("spans", "codecs", "reason", "history", "schedule")
        }
        return Packet(
            **shared,
            plan=plan,
            schedule=self.schedule.schedule() if self.schedule else None,
            latent=tensors.get("latent"),
            history=tuple(tensors[name] for name in names),
        )
