from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_edge.errors import (
    DamagedPacket,
    InvalidTensor,
    OversizedPacket,
    PacketError,
    UnknownVersion,
    WrongLatentSpace,
    WrongPosition,
)
from diffusion_edge.packet import (
    MAX_BYTES,
    Packet,
    new_packet,
    predicted_bytes,
    read,
    write,
)
from diffusion_edge.schedule import Schedule, resolve
from diffusion_edge.types import ImageRequest, Plan

SPACE = "ab" * 16
NOISE = {"beta_schedule": "linear", "timestep_spacing": "trailing", "num_train_timesteps": 1000}


def a_request(prompt: str = "a red circle", steps: int = 10, solver: str = "ddim") -> ImageRequest:
    return ImageRequest(prompt, "tiny", steps, 3, solver, 4.0, 16, 16)


def a_schedule(steps: int = 10, solver: str = "ddim") -> Schedule:
    return resolve(NOISE, solver, steps)


def a_packet() -> Packet:
    """Half way: at step 4 of 10, with one history tensor."""
    fresh = new_packet(a_request(), Plan.parse("cloud:4,edge:6"), 1, SPACE, 12.5)
    rest = fresh.plan.after_first()
    assert rest is not None
    return replace(
        fresh,
        position=4,
        plan=rest,
        schedule=a_schedule(),
        latent=torch.randn(1, 4, 4, 4),
        history=(torch.randn(1, 4, 4, 4),),
        trace={"traceparent": "00-1-2-03"},
    )


def same(a: Packet, b: Packet) -> bool:
    tensors = zip((a.latent, *a.history), (b.latent, *b.history), strict=True)
    equal = all(x is y is None or torch.equal(x, y) for x, y in tensors)  # type: ignore[arg-type]
    return equal and replace(a, latent=None, history=()) == replace(b, latent=None, history=())


def test_a_packet_survives_its_bytes() -> None:
    packet = a_packet()
    assert same(read(write(packet), SPACE), packet)


def test_a_new_packet_survives_its_bytes_and_has_the_images_seed() -> None:
    packet = new_packet(a_request(), Plan.parse("cloud:10"), 2, SPACE)
    assert packet.seed == 5
    assert same(read(write(packet), SPACE), packet)


@given(
    prompt=st.text(max_size=200),
    steps=st.integers(1, 60),
    solver=st.sampled_from(["ddim", "euler", "dpmpp-2m"]),
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=8),
)
@settings(max_examples=60, deadline=None)
def test_any_packet_survives_its_bytes(
    prompt: str, steps: int, solver: str, values: list[float]
) -> None:
    packet = new_packet(a_request(prompt, steps, solver), Plan.parse(f"cloud:{steps}"), 0, SPACE)
    latent = torch.tensor(values[:8]).view(1, 2, 2, 2)
    packet = replace(packet, latent=latent, schedule=a_schedule(steps, solver))
    assert same(read(write(packet), SPACE), packet)


def test_the_size_is_near_the_prediction_and_small() -> None:
    request = a_request()
    for solver, history in (("ddim", 0), ("dpmpp-2m", 1)):
        latent, past = torch.randn(1, 8, 8, 8), torch.randn(1, 8, 8, 8)
        packet = replace(
            new_packet(request, Plan.parse("cloud:10"), 0, SPACE),
            latent=latent,
            history=(past,) * history,
            schedule=a_schedule(10, solver),
        )
        size = len(write(packet))
        print(solver, size, predicted_bytes(512, history, request))
        assert abs(size - predicted_bytes(512, history, request)) < 800
        assert size < 4 * 512 * (1 + history) + len(request.prompt) + 4096


WRONG = {
    "a head cut short": (lambda d: d[:10], DamagedPacket),
    "another magic": (lambda d: b"NOPE" + d[4:], DamagedPacket),
    "a newer version": (lambda d: d[:4] + struct.pack("<H", 2) + d[6:], UnknownVersion),
    "a body cut short": (lambda d: d[:-1], DamagedPacket),
    "a body too long": (lambda d: d + b"\0", DamagedPacket),
    "a flipped bit": (lambda d: d[:-1] + bytes([d[-1] ^ 1]), DamagedPacket),
    "nothing": (lambda d: b"", DamagedPacket),
    "too much": (lambda d: d + bytes(MAX_BYTES + 1), OversizedPacket),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_bytes_are_refused_by_kind(name: str) -> None:
    alter, kind = WRONG[name]
    with pytest.raises(kind):
        read(alter(write(a_packet())), SPACE)


NAN = torch.full((1, 4, 4, 4), float("nan"))
UNFIT = {
    "NaN": ({"latent": NAN}, InvalidTensor),
    "infinite history": ({"history": (torch.full((1, 4, 4, 4), float("inf")),)}, InvalidTensor),
    "half precision": ({"latent": torch.zeros(1, 4, 4, 4).half(), "history": ()}, InvalidTensor),
    "a batch of two": ({"latent": torch.zeros(2, 4, 4, 4), "history": ()}, InvalidTensor),
    "history of another shape": ({"history": (torch.zeros(1, 4, 2, 2),)}, InvalidTensor),
    "no latent half way": ({"latent": None, "history": ()}, WrongPosition),
    "no schedule half way": ({"schedule": None}, WrongPosition),
    "another schedule's length": ({"schedule": a_schedule(12)}, WrongPosition),
    "a position past the end": ({"position": 10}, WrongPosition),
    "a position before the plan": ({"position": 3}, WrongPosition),
    "a plan that ends early": ({"plan": Plan.parse("edge:5")}, WrongPosition),
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_content_is_refused_by_kind(name: str) -> None:
    changes, kind = UNFIT[name]
    with pytest.raises(kind):
        read(write(replace(a_packet(), **changes)), SPACE)


def test_another_latent_space_is_refused_with_the_reason() -> None:
    with pytest.raises(WrongLatentSpace, match="share one VAE"):
        read(write(a_packet()), "cd" * 16)


def test_no_altered_packet_is_accepted() -> None:
    data = write(a_packet())
    rng = random.Random(0)
    for _ in range(2000):
        altered = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(altered))
            altered[at] ^= rng.randint(1, 255)
        if bytes(altered) != data:
            with pytest.raises(PacketError):
                read(bytes(altered), SPACE)


def test_a_forged_body_with_a_right_checksum_never_crashes() -> None:
    """Whoever can compute a checksum still gets a typed error or a well-formed packet."""
    import hashlib

    data = write(a_packet())
    head, body = data[:26], data[26:]
    rng = random.Random(1)
    refused = 0
    for _ in range(2000):
        altered = bytearray(body)
        altered[rng.randrange(len(altered) // 2)] = rng.randrange(256)
        digest = hashlib.blake2b(altered, digest_size=16).digest()
        try:
            read(head[:10] + digest + bytes(altered), SPACE)
        except PacketError:
            refused += 1
    assert refused > 100
