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
from functools import partial
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from diffusion_edge.codec import decode, encode, part_names
from diffusion_edge.errors import (
    DamagedPacket,
    InvalidPlan,
    InvalidTensor,
    OversizedPacket,
    TruncatedPacket,
    UnknownVersion,
    UnsupportedSolver,
    WrongChecksum,
    WrongLatentSpace,
    WrongPlan,
    WrongPosition,
)
from diffusion_edge.header import Header, HeaderSchedule, HeaderSpan
from diffusion_edge.offer import Offer, Shapes, check_offered
from diffusion_edge.plan import EXACT, Codec, Plan
from diffusion_edge.request import NEVER, ImageRequest, Times
from diffusion_edge.schedule import Schedule
from diffusion_edge.solver import build_table

VERSION = 4
MAX_BYTES = 64 * 1024 * 1024
MAX_HEADER = 1024 * 1024
_MAGIC = b"DEPK"
_HEAD = struct.Struct("<4sHI16s")


@dataclass(frozen=True)
class Packet:
    """A trajectory between two steps, and what is needed to go on with it anywhere.

    position: the step that comes next. plan: the spans that are left; it starts at `position`.
    latent: float32 (1, ...), or None before the first step, together with `schedule`.
    history: the solver's tensors, each of the latent's shape. codec: how the tensors are carried;
    here they are always float32. left: on a clock that starts when the packet is written, so that
    nodes' clocks need not agree; what the way takes is not counted. execution: how the model was
    run in the span before, for the record.
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
    execution: str | None = None

    @property
    def guidance_now(self) -> float:
        """Of the span that comes next, which may have its own."""
        own = self.plan.spans[0].guidance
        return self.guidance if own is None else own


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
        header = _header_of(packet).model_dump_json(exclude_none=True)
    except ValidationError as error:
        raise _told(error) from None
    body = save_tensors(parts, metadata={"packet": header})
    if len(body) > MAX_BYTES or _header_bytes(body) > MAX_HEADER:
        raise OversizedPacket(
            f"the packet has {len(body)} bytes, {_header_bytes(body)} of them in its header; the "
            f"limits are {MAX_BYTES} and {MAX_HEADER}"
        )
    return _HEAD.pack(_MAGIC, VERSION, len(body), _digest(body)) + body


def _header_of(packet: Packet) -> Header:
    fields = {name: getattr(packet, name) for name in Header.model_fields if hasattr(packet, name)}
    own_form = {
        "spans": tuple(HeaderSpan.of(span) for span in packet.plan.spans),
        "codecs": packet.plan.codecs,
        "reason": packet.plan.reason,
        "history": len(packet.history),
        "due_in_s": packet.left.due,
        "given_up_in_s": packet.left.give_up,
        "schedule": HeaderSchedule.of(packet.schedule) if packet.schedule else None,
    }
    return Header.model_validate(fields | own_form)


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
    return _read(data, offer.latent_space, partial(check_offered, offer))


def _read(data: bytes, latent_space: str, check: Callable[[Header, Shapes], None]) -> Packet:
    body = _body(data)
    try:
        header, shapes = _heads(body)
        if header.latent_space != latent_space:
            raise WrongLatentSpace(
                f"the packet's latent space is {header.latent_space[:12]!r}, this stage works in "
                f"{latent_space[:12]!r}; a hand-off needs stages that share one VAE"
            )
        check(header, shapes)
        packet = _packet_of(header, load_tensors(body))
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


def _heads(body: bytes) -> tuple[Header, Shapes]:
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
    return Header.model_validate_json(text), shapes


_OWN_FORM = ("spans", "codecs", "reason", "history", "schedule", "due_in_s", "given_up_in_s")


def _packet_of(header: Header, parts: dict[str, Tensor]) -> Packet:
    """With the tensors that `parts` carry: a latent, if there is one, and the history."""
    past = [f"history{number}" for number in range(header.history)]
    names = ["latent", *past] if "latent" in parts else past
    if set(parts) != {part for name in names for part in part_names(name, header.codec)}:
        raise InvalidTensor(f"the packet's tensors are not those that its {header.codec} needs")
    tensors = {name: decode(name, parts, header.codec) for name in names}
    shared = {name: getattr(header, name) for name in Header.model_fields if name not in _OWN_FORM}
    return Packet(
        **shared,
        left=Times(header.due_in_s, header.given_up_in_s),
        plan=header.plan(),
        schedule=header.schedule.schedule() if header.schedule else None,
        latent=tensors.get("latent"),
        history=tuple(tensors[name] for name in past),
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
