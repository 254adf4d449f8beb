"""Altered packets: by the ten thousand as a network alters them, and as a forger would.

Whoever alters bytes without mending the checksum is always refused. Who mends it can make any
packet, good ones too; then `read` must either raise a PacketError or give a packet of which all
holds that the engine relies on, written down here once more in `sound`.
"""

from __future__ import annotations

import json
import math
import random
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from itertools import pairwise
from typing import Any

import torch

from diffusion_edge.errors import PacketError
from diffusion_edge.packet import Packet, new_packet, read, write
from diffusion_edge.plan import Codec, Plan
from diffusion_edge.request import ImageRequest, Times
from diffusion_edge.schedule import SOLVERS, Schedule
from diffusion_edge.solver import build_table, history_length
from tests.forged import HEAD, Json, joined, parts_of, seal
from tests.long import often

SPACE = "ab" * 16
ALTERED = often(20_000, 100_000)
FORGED = often(4_000, 20_000)
PATIENCE_S = 1.0  # of the processor, for one packet; a read takes about a millisecond at most
CODECS: tuple[Codec, ...] = ("exact", "bf16", "int8")


def samples() -> list[bytes]:
    """Small packets: new, half way in each codec, and half way with the other kinds of solver."""
    request = ImageRequest("a red circle", "tiny", 3, 3, "dpmpp-2m", 4.0, 16, 16)
    fresh = new_packet(request, Plan.parse("cloud:1,edge:1,device:1"), 0, SPACE, Times(12.5, 25.0))
    rest = fresh.plan.after_first()
    assert rest is not None
    sigmas, timesteps = (20.0, 5.0, 1.0, 0.0), (999.0, 666.0, 333.0)
    schedule = Schedule(sigmas, sigmas[:-1], sigmas[1:], timesteps, "epsilon", "preserving", 1.0)
    past = torch.linspace(-1, 2, 12).view(1, 3, 2, 2)
    under_way = replace(
        fresh,
        position=1,
        plan=rest,
        schedule=schedule,
        latent=torch.linspace(-2, 2, 12).view(1, 3, 2, 2),
        history=(past,),
        trace={"traceparent": "00-1-2-03"},
    )
    exploding = replace(schedule, scaling="exploding", initial_scale=20.0)
    flow = tuple(sigma / 25 for sigma in sigmas)
    others = {
        "euler-ancestral": exploding,
        "lms": exploding,
        "pndm": replace(schedule, origins=(20.0, 20.0, 5.0), targets=(5.0, 5.0, 0.0)),
        "dpmpp-2m-sde": schedule,
        "flow-unipc": Schedule(
            flow, flow[:-1], flow[1:], timesteps, "flow_prediction", "flow", 1.0
        ),
    }
    packets = [fresh, *(replace(under_way, codec=codec) for codec in CODECS)]
    packets += [
        replace(under_way, solver=name, schedule=other, history=(past,) * history_length(name))
        for name, other in others.items()
    ]
    return [write(packet) for packet in packets]


SAMPLES = samples()


def refused_or_sound(data: bytes, kinds: Counter[str]) -> None:
    began = time.process_time()
    error: PacketError | None
    try:
        packet = read(data, SPACE)
    except PacketError as refused:
        error = refused
    else:
        sound(packet)
        error = None
    kinds[type(error).__name__ if error else "accepted"] += 1
    assert error is None or len(error.message) < 1000
    assert time.process_time() - began < PATIENCE_S


def sound(packet: Packet) -> None:
    """All that holds of a packet that was read, whoever wrote it."""
    assert packet.latent_space == SPACE
    assert packet.codec in CODECS
    assert 1 <= packet.steps <= 1000
    assert 0 <= packet.position < packet.steps
    spans = packet.plan.spans
    assert spans
    assert (spans[0].start, spans[-1].stop) == (packet.position, packet.steps)
    assert all(a.stop == b.start for a, b in pairwise(spans))
    assert all(span.start < span.stop for span in spans)
    assert len(packet.plan.codecs) == len(spans) - 1
    assert set(packet.plan.codecs) <= set(CODECS)
    assert len(packet.history) <= 3
    for tensor in (packet.latent, *packet.history):
        if tensor is not None:
            assert packet.latent is not None
            assert tensor.dtype == torch.float32
            assert 2 <= tensor.ndim <= 8
            assert tensor.shape[0] == 1
            assert tensor.numel() > 0
            assert tensor.shape == packet.latent.shape
            assert bool(torch.isfinite(tensor).all())
    schedule = packet.schedule
    assert (schedule is None) == (packet.latent is None)
    if schedule is None:
        assert packet.position == 0
        assert packet.history == ()
    else:
        lists = (schedule.timesteps, schedule.origins, schedule.targets, schedule.sigmas[:-1])
        assert {len(values) for values in lists} == {packet.steps}
        assert all(math.isfinite(v) for values in (*lists, schedule.sigmas) for v in values)
        assert min(*schedule.origins, *schedule.sigmas[:-1]) > 0
        assert min(*schedule.targets, *schedule.sigmas) >= 0
        assert math.isfinite(schedule.initial_scale)
        table = build_table(packet.solver, schedule)
        assert bool(torch.isfinite(table.weights).all())
        assert len(packet.history) == history_length(packet.solver)
    assert math.isfinite(packet.guidance)
    assert all(left is None or math.isfinite(left) for left in astuple(packet.left))
    assert 0 <= packet.seed < 2**64
    assert packet.width > 0
    assert packet.height > 0
    for text in (packet.prompt, packet.negative_prompt, packet.request_id, packet.plan.reason):
        text.encode()


# ---------------------------------------------------------------------------- without mending


def flipped(data: bytes, rng: random.Random) -> bytes:
    """One to eight bits."""
    altered = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        altered[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(altered)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def extended(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.randint(1, 64))


def overwritten(data: bytes, rng: random.Random) -> bytes:
    """A stretch of it, by random bytes, zeros, or a piece from elsewhere in it."""
    start, size = rng.randrange(len(data)), rng.randint(1, 64)
    other = rng.randrange(len(data))
    filling = rng.choice([rng.randbytes(size), bytes(size), data[other : other + size]])
    return data[:start] + filling + data[start + len(filling) :]


def dropped(data: bytes, rng: random.Random) -> bytes:
    """Without a stretch in the middle, or with one twice."""
    start, size = rng.randrange(len(data)), rng.randint(1, 64)
    return data[:start] + (data[start + size :] if rng.random() < 0.5 else data[start - size :])


def spliced(data: bytes, rng: random.Random) -> bytes:
    """Another packet's body under this one's head."""
    return data[:HEAD] + rng.choice(SAMPLES)[HEAD:]


def noise(data: bytes, rng: random.Random) -> bytes:
    """Random bytes, with a good beginning or none."""
    return data[: rng.choice([0, 4, 6, 10, HEAD])] + rng.randbytes(rng.randint(0, 200))


def test_no_altered_packet_is_accepted() -> None:
    rng, kinds, began = random.Random(0), Counter[str](), time.perf_counter()
    ways = (flipped, flipped, cut, extended, overwritten, dropped, spliced, noise)
    good = set(SAMPLES)
    while kinds.total() < ALTERED:
        altered = rng.choice(ways)(rng.choice(SAMPLES), rng)
        if altered not in good:
            refused_or_sound(altered, kinds)
    print(f"\n{ALTERED} altered packets in {time.perf_counter() - began:.1f} s: {dict(kinds)}")
    assert kinds["accepted"] == 0
    assert set(kinds) == {"DamagedPacket", "TruncatedPacket", "UnknownVersion", "WrongChecksum"}


def test_every_single_bit_counts() -> None:
    for data in SAMPLES:
        kinds = Counter[str]()
        for bit in range(8 * len(data)):
            altered = bytearray(data)
            altered[bit // 8] ^= 1 << bit % 8
            refused_or_sound(bytes(altered), kinds)
        assert kinds["accepted"] == 0


# ---------------------------------------------------------------------------- with mending

JUNK: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2, 3, 4, 7, 1000, 1001, 2**31, 2**63, 2**64, 10**30, 0.5, -0.5, 1e-320,
    1e308, math.nan, math.inf, "", "exact", "bf16", "int8", "edge", "flow", "\0", "\ud800",
    [], [[]], {}, {"a": 1}, [0], [1e300] * 3, [1] * 1001, "x" * 30_000, "ä" * 300,
    *SOLVERS,
)  # fmt: skip
PLACES = ([], [0], [0, 2**64], [-1, 3], [2**63, 2**63], None, "x")
DTYPES = ("F32", "F16", "BF16", "F64", "I8", "U8", "I64", "BOOL", "F8_E4M3", "F4", "C64", "x", "")
SHAPES = (
    [], [12], [1, 12], [1, 3, 2, 2], [3, 2, 2], [1, 1, 12], [1, 3, 4], [2, 3, 2], [1, 0], [0],
    [1, 2**32, 2**32], [1, 3, -2, -2], [1, 3, 2, 2.0], [1] * 70, [1, "3"], "", None,
    [1, 3, 2, 2, 1], [2**64, 3],
)  # fmt: skip


def mutated(value: Any, rng: random.Random) -> Any:
    """The same JSON with one place changed, at any depth."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        rest = {name: item for name, item in value.items() if name != key}
        way = rng.randrange(8)
        if way == 0:
            return rest
        if way == 1:
            return rest | {key + "x": value[key]}
        if way == 2:
            return value | {key: value[rng.choice(sorted(value))]}
        return value | {key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        way = rng.randrange(5)
        if way == 0:
            return value[:at] + value[at + 1 :]
        if way == 1:
            return value[: at + 1] + value[at:]
        return [*value[:at], mutated(value[at], rng), *value[at + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice([value + 1, value - 1, -value, value * 2, value / 3])
    return rng.choice(JUNK)


def other_fields(fields: Json, header: Json, tensors: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 3])):
        changed = mutated(fields, rng)
        fields = changed if isinstance(changed, dict) else fields
    return joined(fields, header, tensors)


def other_text(fields: Json, header: Json, tensors: bytes, rng: random.Random) -> bytes:
    """The fields' JSON as text: a stretch dropped, doubled or replaced."""
    text = json.dumps(fields)
    start, size = rng.randrange(len(text)), rng.randint(1, 12)
    filling = rng.choice(
        ["", text[start : start + size] * 2, '"', "[", "]", "{", "}", ",", "9" * 99]
    )
    return joined(text[:start] + filling + text[start + size :], header, tensors)


def other_tensors(fields: Json, header: Json, tensors: bytes, rng: random.Random) -> bytes:
    """Entries of the safetensors header: dtype, shape, place, name."""
    if not header:
        return joined(
            fields, {"latent": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}, b"1234"
        )
    name = rng.choice(sorted(header))
    entry = dict(header[name])
    way = rng.randrange(7)
    if way == 0:
        entry["dtype"] = rng.choice(DTYPES)
    elif way == 1:
        entry["shape"] = rng.choice(SHAPES)
    elif way == 2:
        entry["data_offsets"] = [
            offset + rng.choice([-4, -1, 0, 1, 4]) for offset in entry["data_offsets"]
        ]
    elif way == 3:
        entry["data_offsets"] = rng.choice(
            [[], [0], [0, 2**64], [-1, 3], [2**63, 2**63], None, "x"]
        )
    elif way == 4:
        entry = mutated(entry, rng)
    elif way == 5:
        header = header | {rng.choice(["mask", "history0", "latent", "history9", ""]): entry}
    rest = {key: value for key, value in header.items() if key != name or way != 6}
    return joined(fields, rest | ({name: entry} if way < 5 else {}), tensors)


def other_values(fields: Json, header: Json, tensors: bytes, rng: random.Random) -> bytes:
    """The tensors' bytes: some overwritten, also by NaN and infinity; or fewer or more of them."""
    altered = bytearray(tensors)
    for _ in range(rng.randint(1, 4)):
        piece = rng.choice(
            [rng.randbytes(4), b"\xff" * 4, struct.pack("<f", math.inf), b"\0\0\x80\x7f"]
        )
        at = rng.randrange(max(1, len(altered)))
        altered[at : at + len(piece)] = piece[: len(altered) - at]
    if rng.random() < 0.2:
        altered = altered[: rng.randrange(len(altered) + 1)] + rng.randbytes(rng.randint(0, 8))
    return joined(fields, header, bytes(altered))


def swapped(fields: Json, header: Json, tensors: bytes, rng: random.Random) -> bytes:
    """Fields of one packet with the tensors of another."""
    _, header, tensors = parts_of(rng.choice(SAMPLES))
    return joined(fields | {"codec": rng.choice(CODECS)}, header, tensors)


def bytewise(fields: Json, header: Json, tensors: bytes, rng: random.Random) -> bytes:
    """Any change of the bytes, under the right checksum."""
    body = joined(fields, header, tensors)[HEAD:]
    way = rng.choice([flipped, cut, extended, overwritten, dropped])
    return seal(way(body, rng))


Forger = Callable[[Json, Json, bytes, random.Random], bytes]
FORGERS: tuple[Forger, ...] = (
    *(other_fields,) * 3,
    other_text,
    other_tensors,
    other_values,
    swapped,
    bytewise,
)


def forged(count: int, rng: random.Random) -> Iterator[bytes]:
    taken_apart = [parts_of(data) for data in SAMPLES]
    for _ in range(count):
        yield rng.choice(FORGERS)(*rng.choice(taken_apart), rng)


def test_a_forged_packet_is_refused_or_sound() -> None:
    rng, kinds, began = random.Random(1), Counter[str](), time.perf_counter()
    for data in forged(FORGED, rng):
        refused_or_sound(data, kinds)
    print(f"\n{FORGED} forged packets in {time.perf_counter() - began:.1f} s: {dict(kinds)}")
    # Else the checksum would do the work: every inner check has been reached, and all are met.
    reached = {"DamagedPacket", "InvalidTensor", "NotFinite", "WrongLatentSpace", "WrongPosition"}
    assert set(kinds) == reached | {"WrongPlan", "accepted"}
    assert kinds["accepted"] < FORGED / 2
