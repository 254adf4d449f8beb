from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_edge.codec import encode
from diffusion_edge.errors import (
    DamagedPacket,
    InvalidTensor,
    NotFinite,
    NotOffered,
    OversizedPacket,
    PacketError,
    TruncatedPacket,
    UnknownVersion,
    WrongChecksum,
    WrongLatentSpace,
    WrongPlan,
    WrongPosition,
)
from diffusion_edge.offer import Offer
from diffusion_edge.packet import (
    MAX_BYTES,
    MAX_HEADER,
    VERSION,
    Packet,
    new_packet,
    predicted_bytes,
    read,
    take,
    write,
)
from diffusion_edge.plan import Codec, Plan, Span
from diffusion_edge.request import NEVER, ImageRequest, Times
from diffusion_edge.schedule import (
    SOLVERS,
    Schedule,
    bounds,
    fitting,
    resolve,
    resolved_steps,
)
from diffusion_edge.solver import history_length
from tests.forged import HEAD, Json, body_of, joined, parts_of, seal, with_tensors

SPACE = "ab" * 16
CODECS: tuple[Codec, ...] = ("exact", "bf16", "int8")
NOISE = {"beta_schedule": "linear", "timestep_spacing": "trailing", "num_train_timesteps": 1000}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}


def a_request(prompt: str = "a red circle", steps: int = 10, solver: str = "ddim") -> ImageRequest:
    return ImageRequest(prompt, "tiny", steps, 3, solver, 4.0, 16, 16, request_id="0" * 32)


def a_schedule(steps: int = 10, solver: str = "dpmpp-2m") -> Schedule:
    return resolve(FLOW if solver.startswith("flow-") else NOISE, solver, steps)


def a_packet(codec: Codec = "exact") -> Packet:
    """Half way: at step 4 of 10, with one history tensor."""
    request = a_request(solver="dpmpp-2m")
    fresh = new_packet(request, Plan.parse("cloud:4,edge:6"), 1, SPACE, Times(12.5, 25.0))
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
        codec=codec,
    )


def same(a: Packet, b: Packet) -> bool:
    tensors = zip((a.latent, *a.history), (b.latent, *b.history), strict=True)
    equal = all(x is y is None or torch.equal(x, y) for x, y in tensors)  # type: ignore[arg-type]
    return equal and replace(a, latent=None, history=()) == replace(b, latent=None, history=())


# ---------------------------------------------------------------------------- good packets


def test_a_packet_survives_its_bytes() -> None:
    packet = a_packet()
    assert same(read(write(packet), SPACE), packet)


def test_a_new_packet_survives_its_bytes_and_has_the_images_seed() -> None:
    packet = new_packet(a_request(), Plan.parse("cloud:10"), 2, SPACE)
    assert (packet.seed, packet.codec) == (5, "exact")
    assert same(read(write(packet), SPACE), packet)


@pytest.mark.parametrize(("own", "now"), [(None, 4.0), (7.5, 7.5), (1.0, 1.0), (0.0, 0.0)])
def test_a_span_may_have_guidance_of_its_own_and_none_is_not_zero(
    own: float | None, now: float
) -> None:
    """The request's is 4."""
    plan = Plan((Span("cloud", 0, 4, own), Span("edge", 4, 10)), ("exact",))
    packet = read(write(new_packet(a_request(), plan, 0, SPACE)), SPACE)
    assert packet.plan == plan
    assert packet.guidance_now == now
    rest = packet.plan.after_first()
    assert rest is not None
    assert replace(packet, plan=rest).guidance_now == 4.0


@pytest.mark.parametrize("zero", ["seed", "guidance", "image", "attempt"])
def test_zero_is_a_value(zero: str) -> None:
    fields: dict[str, Any] = {"seed": 7, "guidance": 2.0, "image": 3, "attempt": 1, zero: 0}
    packet = replace(a_packet(), **fields)
    assert same(read(write(packet), SPACE), packet)


@pytest.mark.parametrize("left", [NEVER, Times(0.0, 0.0), Times(-1.5, None), Times(None, 1e-3)])
def test_times_are_left_as_they_are_and_none_is_not_zero(left: Times) -> None:
    fresh = new_packet(a_request(), Plan.parse("cloud:10"), 0, SPACE, left)
    assert read(write(fresh), SPACE).left == left


def test_tensors_may_share_their_memory() -> None:
    packet = a_packet()
    assert packet.latent is not None
    packet = replace(packet, history=(packet.latent.transpose(2, 3),))
    assert same(read(write(packet), SPACE), packet)


@given(
    prompt=st.text(max_size=200),
    asked=st.integers(1, 60),
    solver=st.sampled_from(SOLVERS),
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=8),
)
@settings(max_examples=60, deadline=None)
def test_any_packet_survives_its_bytes(
    prompt: str, asked: int, solver: str, values: list[float]
) -> None:
    steps = resolved_steps(solver, asked)
    packet = new_packet(a_request(prompt, steps, solver), Plan.parse(f"cloud:{steps}"), 0, SPACE)
    latent = torch.tensor(values[:8]).view(1, 2, 2, 2)
    history = tuple(latent / (k + 2) for k in range(history_length(solver)))
    schedule = a_schedule(steps, solver)
    packet = replace(packet, latent=latent, history=history, schedule=schedule)
    assert same(read(write(packet), SPACE), packet)


def test_pndm_has_origins_and_targets_of_its_own() -> None:
    schedule = a_schedule(8, "pndm")
    assert schedule.origins != schedule.sigmas[:-1]
    assert schedule.targets != schedule.sigmas[1:]
    packet = replace(
        new_packet(a_request(steps=8, solver="pndm"), Plan.parse("cloud:8"), 0, SPACE),
        latent=torch.zeros(1, 4, 4, 4),
        history=(torch.zeros(1, 4, 4, 4),) * history_length("pndm"),
        schedule=schedule,
    )
    assert read(write(packet), SPACE).schedule == schedule


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_a_lossy_codec_carries_latent_and_history_alike(codec: Codec) -> None:
    sent = a_packet(codec)
    got = read(write(sent), SPACE)
    assert got.codec == codec
    assert sent.latent is not None
    assert got.latent is not None
    for name, before, after in (
        ("latent", sent.latent, got.latent),
        ("history", sent.history[0], got.history[0]),
    ):
        assert after.dtype == torch.float32
        assert 0 < (after - before).abs().max() < 0.03, name
    assert replace(got, latent=None, history=()) == replace(sent, latent=None, history=())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(8, 8, 8), (4, 16, 16), (4, 2, 6, 6), (16,)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_size_is_near_the_prediction(solver: str, shape: tuple[int, ...], codec: Codec) -> None:
    left = Times(29.98765432101234, 59.98765432101234)
    for asked in (4, 10, 20, 25):
        steps, history = resolved_steps(solver, asked), history_length(solver)
        request = a_request("a red circle, größer", steps, solver)
        reason = "cheapest of 190 plans that meet the deadline of 30 s and the quality floor 0.95"
        packet = replace(
            new_packet(request, Plan.parse(f"edge:{steps}", reason), 0, SPACE, left),
            latent=torch.randn(1, *shape),
            history=tuple(torch.randn(1, *shape) for _ in range(history)),
            schedule=a_schedule(steps, solver),
            codec=codec,
        )
        uneven = 40 * steps if solver in ("ddim", "pndm") else 0
        over = len(write(packet)) - predicted_bytes(shape, history, request, codec)
        assert -300 < over < 450 + uneven, (steps, over)


@pytest.mark.parametrize("prompt", ["a" * 5000, "größer, " * 500, "红色的圆" * 300])
def test_the_prediction_counts_the_bytes_of_both_prompts(prompt: str) -> None:
    short = a_request()
    for request in (replace(short, prompt=prompt), replace(short, negative_prompt=prompt)):
        sizes, predicted = [], []
        for each in (short, request):
            packet = replace(
                a_packet(), prompt=each.prompt, negative_prompt=each.negative_prompt, solver="ddim"
            )
            packet = replace(packet, schedule=a_schedule(solver="ddim"), history=())
            sizes.append(len(write(packet)))
            predicted.append(predicted_bytes((4, 4, 4), 0, each))
        assert predicted[1] - predicted[0] == pytest.approx(sizes[1] - sizes[0], abs=16)


# ---------------------------------------------------------------------------- wrong bytes

WRONG: dict[str, tuple[Callable[[bytes], bytes], type[PacketError]]] = {
    "nothing": (lambda d: b"", TruncatedPacket),
    "a head cut short": (lambda d: d[:10], TruncatedPacket),
    "a body cut short": (lambda d: d[:-1], TruncatedPacket),
    "another magic": (lambda d: b"NOPE" + d[4:], DamagedPacket),
    "text": (lambda d: b"hello", DamagedPacket),
    "the version before": (lambda d: seal(d[HEAD:], VERSION - 1), UnknownVersion),
    "a newer version": (lambda d: seal(d[HEAD:], VERSION + 1), UnknownVersion),
    "a body too long": (lambda d: d + b"\0", DamagedPacket),
    "a flipped bit": (lambda d: d[:-1] + bytes([d[-1] ^ 1]), WrongChecksum),
    "another checksum": (lambda d: d[:10] + bytes(16) + d[26:], WrongChecksum),
    "too much": (lambda d: d + bytes(MAX_BYTES + 1), OversizedPacket),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_bytes_are_refused_by_kind(name: str) -> None:
    alter, kind = WRONG[name]
    with pytest.raises(PacketError) as caught:
        read(alter(write(a_packet())), SPACE)
    assert type(caught.value) is kind


def test_another_latent_space_is_refused_with_the_reason() -> None:
    with pytest.raises(WrongLatentSpace, match="share one VAE"):
        read(write(a_packet()), "cd" * 16)


# ---------------------------------------------------------------------------- unfit content

NAN = torch.full((1, 4, 4, 4), float("nan"))
ZEROS = torch.zeros(1, 4, 4, 4)
UNFIT: dict[str, tuple[dict[str, Any], type[PacketError]]] = {
    "NaN": ({"latent": NAN}, NotFinite),
    "infinite history": ({"history": (torch.full((1, 4, 4, 4), float("inf")),)}, NotFinite),
    "half precision": ({"latent": ZEROS.half()}, InvalidTensor),
    "a batch of two": (
        {"latent": torch.zeros(2, 4, 4, 4), "history": (torch.zeros(2, 4, 4, 4),)},
        InvalidTensor,
    ),
    "history of another shape": ({"history": (torch.zeros(1, 4, 2, 2),)}, InvalidTensor),
    "too much history": ({"history": tuple(torch.zeros(2, 1, 4, 4, 4))}, InvalidTensor),
    "too little history": ({"history": ()}, InvalidTensor),
    "an unknown solver": ({"solver": "heun"}, DamagedPacket),
    "no latent half way": ({"latent": None, "history": ()}, WrongPosition),
    "history without a latent": ({"latent": None, "schedule": None}, InvalidTensor),
    "no schedule half way": ({"schedule": None}, WrongPosition),
    "another schedule's length": ({"schedule": a_schedule(12)}, WrongPosition),
    "a position past the end": ({"position": 10}, WrongPosition),
    "a position before the start": ({"position": -1}, WrongPosition),
    "a plan that starts later": ({"position": 3}, WrongPlan),
    "a plan that starts earlier": ({"position": 5}, WrongPlan),
    "a plan that ends early": ({"steps": 11, "schedule": a_schedule(11)}, WrongPlan),
    "a prompt of a book": ({"prompt": "a" * 20_001}, DamagedPacket),
    "a prompt of no characters": ({"prompt": "a \ud800 circle"}, DamagedPacket),
    "a seed too large": ({"seed": 2**64}, DamagedPacket),
    "guidance that is no number": ({"guidance": float("nan")}, DamagedPacket),
    "tensors too large": ({"latent": torch.zeros(1, 2**24 + 1), "history": ()}, OversizedPacket),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", UNFIT)
def test_what_would_be_refused_is_not_written(name: str, codec: Codec) -> None:
    changes, kind = UNFIT[name]
    with pytest.raises(PacketError) as caught:
        write(replace(a_packet(codec), **changes))
    assert type(caught.value) is kind


def test_a_header_too_long_is_not_written() -> None:
    texts = {"prompt": "\0" * 20_000, "negative_prompt": "\0" * 20_000}
    spans = ",".join(f"{'x' * 200}:1" for _ in range(10))
    assert len(write(replace(a_packet(), **texts))) < MAX_HEADER
    stages = Plan.parse(",".join([spans] * 100))
    packet = new_packet(replace(a_request(), steps=1000), stages, 0, SPACE)
    names = tuple(replace(span, stage="\0" * 200) for span in stages.spans)
    with pytest.raises(OversizedPacket, match="in its header"):
        write(replace(packet, plan=replace(stages, spans=names)))


def filled(values: int) -> dict[str, Any]:
    """Fields with a latent and one history tensor of so many values in all."""
    each = torch.zeros(1).expand(1, 1, values // 2)
    return {"latent": each, "history": (each,)}


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_all_tensors_together_are_bound_by_what_they_unfold_to(codec: Codec) -> None:
    with pytest.raises(OversizedPacket, match="as float32"):
        write(replace(a_packet(codec), **filled(MAX_BYTES // 4 + 2)))


def test_tensors_that_just_fit_are_carried() -> None:
    full = replace(a_packet("int8"), **filled(MAX_BYTES // 4))
    assert same(read(write(full), SPACE), full)


def unfit_tensors(codec: Codec, **parts: torch.Tensor) -> bytes:
    """A packet with one history tensor whose tensors are these instead, beside good ones."""
    good = encode("latent", ZEROS, codec) | encode("history0", ZEROS, codec)
    named = {name.replace("__", "."): tensor for name, tensor in parts.items()}
    return with_tensors(write(a_packet(codec)), good | named)


SCALES = torch.ones(4)
BAD_TENSORS: dict[str, tuple[Codec, dict[str, torch.Tensor], type[PacketError]]] = {
    "NaN": ("exact", {"latent": NAN}, NotFinite),
    "NaN in bf16": ("bf16", {"history0": NAN.bfloat16()}, NotFinite),
    "infinity in bf16": ("bf16", {"latent": torch.exp(NAN * 0 + 999).bfloat16()}, NotFinite),
    "a NaN scale": ("int8", {"latent__scale": SCALES * float("nan")}, NotFinite),
    "an infinite scale": ("int8", {"history0__scale": SCALES / 0}, NotFinite),
    "a negative scale": ("int8", {"latent__scale": -SCALES}, InvalidTensor),
    "float32 in bf16": ("bf16", {"latent": ZEROS}, InvalidTensor),
    "int8 in exact": ("exact", {"latent": ZEROS.to(torch.int8)}, InvalidTensor),
    "a scale too many": ("exact", {"latent__scale": SCALES}, InvalidTensor),
    "a scale too short": ("int8", {"latent__scale": SCALES[:3]}, InvalidTensor),
    "a tensor too many": ("exact", {"mask": ZEROS}, InvalidTensor),
    "history of another shape": ("exact", {"history0": torch.zeros(1, 4, 2, 8)}, InvalidTensor),
    "a batch of two": ("exact", {"latent": torch.zeros(2, 4, 4, 4)}, InvalidTensor),
    "a flat latent": ("exact", {"latent": torch.zeros(64)}, InvalidTensor),
    "no values": ("exact", {"latent": torch.zeros(1, 0, 4, 4)}, InvalidTensor),
    "seventy dimensions": ("exact", {"latent": torch.zeros((1,) * 70)}, InvalidTensor),
    "large in few bytes": (
        "int8",
        {"latent": torch.zeros(1, 1, 2**24, dtype=torch.int8), "latent__scale": torch.ones(1)},
        OversizedPacket,
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_unfit_tensors_are_refused_by_kind(name: str) -> None:
    codec, parts, kind = BAD_TENSORS[name]
    with pytest.raises(PacketError) as caught:
        read(unfit_tensors(codec, **parts), SPACE)
    assert type(caught.value) is kind


def test_int8_cannot_unfold_beyond_the_limit() -> None:
    shape = (1, 1, MAX_BYTES // 4 + 1)
    parts = {"latent": torch.zeros(shape, dtype=torch.int8), "latent.scale": torch.ones(1)}
    with pytest.raises(OversizedPacket):
        read(with_tensors(write(a_packet("int8")), parts, history=0), SPACE)


def changed(**fields: Any) -> bytes:
    """A packet whose JSON fields are these instead; `...` leaves one out."""
    before, header, tensors = parts_of(write(a_packet()))
    after = {name: value for name, value in (before | fields).items() if value is not ...}
    return joined(after, header, tensors)


def span(start: Any, stop: Any, stage: Any = "edge") -> Json:
    return {"stage": stage, "start": start, "stop": stop}


def spoilt(**fields: Any) -> Json:
    """The schedule with some lists or values changed."""
    schedule: Json = parts_of(write(a_packet()))[0]["schedule"]
    return {"schedule": schedule | fields}


SIGMAS = parts_of(write(a_packet()))[0]["schedule"]["sigmas"]
BAD_FIELDS: dict[str, tuple[Json, type[PacketError]]] = {
    "a field too few": ({"seed": ...}, DamagedPacket),
    "a field too many": ({"sead": 3}, DamagedPacket),
    "text for a number": ({"seed": "3"}, DamagedPacket),
    "true for a number": ({"seed": True}, DamagedPacket),
    "a fraction for a count": ({"steps": 10.5}, DamagedPacket),
    "NaN": ({"guidance": float("nan")}, DamagedPacket),
    "infinity": ({"due_in_s": float("inf")}, DamagedPacket),
    "a time without end": ({"given_up_in_s": 1e300}, DamagedPacket),
    "an unknown codec": ({"codec": "fp4"}, DamagedPacket),
    "another known codec": ({"codec": "int8"}, InvalidTensor),
    "more history than tensors": ({"history": 2}, InvalidTensor),
    "less history than tensors": ({"history": 0}, InvalidTensor),
    "history without end": ({"history": 10**6}, DamagedPacket),
    "a position past the end": ({"position": 10}, WrongPosition),
    "a position far away": ({"position": 10**9}, WrongPosition),
    "a position below zero": ({"position": -1}, WrongPosition),
    "a plan that starts later": ({"spans": [span(5, 10)]}, WrongPlan),
    "a plan that starts earlier": ({"spans": [span(0, 10)]}, WrongPlan),
    "a plan that ends early": ({"spans": [span(4, 9)]}, WrongPlan),
    "a plan that ends late": ({"spans": [span(4, 11)]}, WrongPlan),
    "a plan with a gap": ({"spans": [span(4, 6), span(7, 10)], "codecs": ["exact"]}, WrongPlan),
    "a plan that goes back": ({"spans": [span(4, 4), span(4, 10)], "codecs": ["exact"]}, WrongPlan),
    "a hop without a codec": ({"spans": [span(4, 6), span(6, 10)]}, WrongPlan),
    "no plan": ({"spans": []}, DamagedPacket),
    "more steps than the schedule": ({"steps": 11}, WrongPosition),
    "steps without end": ({"steps": 10**9}, DamagedPacket),
    "another latent space": ({"latent_space": "cd" * 16}, WrongLatentSpace),
    "a sigma of zero": (spoilt(sigmas=[0, *SIGMAS[1:]]), DamagedPacket),
    "a sigma below zero": (spoilt(sigmas=[-s for s in SIGMAS]), DamagedPacket),
    "a sigma too few": (spoilt(sigmas=SIGMAS[1:]), DamagedPacket),
    "targets of another length": (spoilt(targets=SIGMAS), DamagedPacket),
    "levels that repeat": (spoilt(sigmas=[1.0] * 11), DamagedPacket),
    "levels that a float32 cannot hold": (
        spoilt(sigmas=[1e300, *SIGMAS[1:]], scaling="exploding"),
        DamagedPacket,
    ),
    "a solver that keeps no history": ({"solver": "ddim"}, InvalidTensor),
    "an unknown solver": ({"solver": "heun"}, DamagedPacket),
    "an origin of zero": (spoilt(origins=[0.0] * 10), DamagedPacket),
    "an unknown prediction": (spoilt(prediction="x0"), DamagedPacket),
    "no schedule": ({"schedule": ...}, WrongPosition),
    "a number of 400 digits": ({"guidance": 10**400}, DamagedPacket),
    "lists in lists": ({"prompt": json.loads("[" * 400 + "]" * 400)}, DamagedPacket),
    "half a surrogate pair": ({"prompt": "\ud800"}, DamagedPacket),
    "a trace without end": ({"trace": {str(n): "x" for n in range(17)}}, DamagedPacket),
    "an image of a gigapixel": ({"width": 2**15, "height": 2**15}, DamagedPacket),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_unfit_fields_are_refused_by_kind(name: str) -> None:
    fields, kind = BAD_FIELDS[name]
    with pytest.raises(PacketError) as caught:
        read(changed(**fields), SPACE)
    assert type(caught.value) is kind


def test_a_wrong_field_is_named() -> None:
    with pytest.raises(DamagedPacket, match=r"field 'spans\.0\.start' is wrong: .*integer"):
        read(changed(spans=[span("4", 10)]), SPACE)
    with pytest.raises(DamagedPacket, match=r"field 'x{100}' is wrong"):
        read(changed(**{"x" * 5000: 1}), SPACE)


# ---------------------------------------------------------------------------- what is offered

LEARNED = bounds(NOISE)
OFFER = Offer(
    latent_space=SPACE,
    allows=lambda width, height: (width, height) in ((16, 16), (32, 16)),
    latent_shape=lambda width, height: (4, height // 4, width // 4),
    solvers=fitting(NOISE),
    prediction="epsilon",
    timestep=LEARNED.timestep,
    sigma=LEARNED.sigma,
)
FLOW_OFFER = replace(
    OFFER,
    solvers=fitting(FLOW),
    prediction="flow_prediction",
    timestep=bounds(FLOW).timestep,
    sigma=bounds(FLOW).sigma,
)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_schedule_of_a_family_is_within_its_bounds(solver: str, spacing: str) -> None:
    flow = solver.startswith("flow-")
    noise = FLOW if flow else NOISE | {"timestep_spacing": spacing, "steps_offset": 1}
    shape = (1, 4, 4, 4)
    for asked in (1, 2, 3, 10, 25, 50, 150):
        steps = resolved_steps(solver, asked)
        packet = replace(
            new_packet(a_request("a", steps, solver), Plan.parse(f"cloud:{steps}"), 0, SPACE),
            schedule=resolve(noise, solver, steps),
            latent=torch.zeros(shape),
            history=(torch.zeros(shape),) * history_length(solver),
        )
        offer = FLOW_OFFER if flow else OFFER
        assert same(take(write(packet), offer), packet)


TIMESTEPS = parts_of(write(a_packet()))[0]["schedule"]["timesteps"]
NOT_OFFERED: dict[str, Json] = {
    "a timestep of 1e300": spoilt(timesteps=[1e300, *TIMESTEPS[1:]]),
    "a timestep past the last": spoilt(timesteps=[1020.0, *TIMESTEPS[1:]]),
    "a timestep below zero": spoilt(timesteps=[*TIMESTEPS[:-1], -1.0]),
    "a sigma past the largest": spoilt(sigmas=[1.02 * LEARNED.sigma, *SIGMAS[1:]]),
    "an origin past the largest": spoilt(origins=[1e6, *SIGMAS[1:-1]]),
    "a target past the largest": spoilt(targets=[1e6, *SIGMAS[2:]]),
    "an initial scale of 1e300": spoilt(initial_scale=1e300),
    "an initial scale below zero": spoilt(initial_scale=-1.0),
    "another prediction": spoilt(prediction="v_prediction"),
    "a solver of flows": {"solver": "flow-dpmpp-2m"},
    "a picture of 16384x16384": {"width": 2**14, "height": 2**14},
    "an edge that is not offered": {"width": 24},
}


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_what_a_family_does_not_make_is_refused_before_it_costs_anything(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can compute a checksum can ask for anything."""
    data = changed(**NOT_OFFERED[name])
    costs_nothing(monkeypatch)
    with pytest.raises(NotOffered) as told:
        take(data, OFFER)
    assert "stage's" in told.value.message


def test_a_new_picture_is_of_a_size_that_is_offered() -> None:
    huge = replace(a_request(), width=2**14, height=2**14)
    data = write(new_packet(huge, Plan.parse("cloud:10"), 0, SPACE))
    assert read(data, SPACE).width == 2**14
    with pytest.raises(NotOffered, match=r"16384x16384; this stage's family makes no such size"):
        take(data, OFFER)


@pytest.mark.parametrize("guidance", [1e38, 50.1, -0.1])
def test_guidance_has_bounds(guidance: float) -> None:
    fields = [{"guidance": guidance}, {"spans": [span(4, 10) | {"guidance": guidance}]}]
    for wrong in fields:
        with pytest.raises(DamagedPacket, match="guidance' is wrong: Input should be"):
            read(changed(**wrong), SPACE)
    with pytest.raises(DamagedPacket, match="guidance' is wrong: Input should be"):
        write(replace(a_packet(), guidance=guidance))


@pytest.mark.parametrize("codec", CODECS)
def test_a_latent_of_another_shape_is_refused_before_it_is_read(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of 32x16 has latents of 4x8, so those of 4x4 are not its."""
    wrong, right = write(a_packet(codec)), write(replace(a_packet(codec), height=16))
    wrong = with_tensors(wrong, tensors_of(codec), width=32)
    assert take(right, OFFER).codec == codec
    costs_nothing(monkeypatch)
    with pytest.raises(InvalidTensor, match="has the shape"):
        take(wrong, OFFER)


def test_int8_is_not_unfolded_before_its_size_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (1, 1, MAX_BYTES // 4 + 1)
    parts = {"latent": torch.zeros(shape, dtype=torch.int8), "latent.scale": torch.ones(1)}
    data = with_tensors(write(a_packet("int8")), parts, history=0)
    costs_nothing(monkeypatch)
    with pytest.raises(OversizedPacket):
        read(data, SPACE)


def test_several_tensors_are_not_unfolded_before_their_size_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = torch.zeros((1, 1, MAX_BYTES // 8 + 1), dtype=torch.int8)
    parts = dict.fromkeys(("latent", "history0"), half)
    scales = {f"{name}.scale": torch.ones(1) for name in parts}
    data = with_tensors(write(a_packet("int8")), parts | scales)
    costs_nothing(monkeypatch)
    with pytest.raises(OversizedPacket):
        read(data, SPACE)


def tensors_of(codec: Codec) -> dict[str, torch.Tensor]:
    return encode("latent", ZEROS, codec) | encode("history0", ZEROS, codec)


def costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no tensor may be read and no table built."""

    def fail(*_: object) -> None:
        raise RecursionError("it was not refused before")

    for name in ("load_tensors", "build_table"):
        monkeypatch.setattr(f"diffusion_edge.packet.{name}", fail)


# ---------------------------------------------------------------------------- hostile bytes


def hostile() -> dict[str, bytes]:
    fields, header, tensors = parts_of(write(a_packet()))
    text = json.dumps(fields)
    meta = json.dumps({"packet": text})
    latent = json.dumps(header["latent"])

    def around(metadata: str, rest: str = '"latent": ' + latent) -> bytes:
        return seal(body_of(f'{{"__metadata__": {metadata}, {rest}}}', tensors))

    def one(shape: str, offsets: str = "[0, 256]", dtype: str = "F32") -> bytes:
        return around(
            meta, f'"latent": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}'
        )

    deep = "[" * 50_000 + "]" * 50_000
    return {
        "an empty body": seal(b""),
        "a body of seven bytes": seal(bytes(7)),
        "a header longer than the body": seal(struct.pack("<Q", 2**20) + b"{}"),
        "a header length near 2^64": seal(struct.pack("<Q", 2**64 - 1) + b"{}" + tensors),
        "a header beyond the limit": seal(body_of(" " * (MAX_HEADER + 1), tensors)),
        "a header that is a list": seal(body_of("[]", tensors)),
        "a header of UTF-16": seal(struct.pack("<Q", 8) + '{"a"'.encode("utf-16-le") + tensors),
        "a header that is no text": seal(struct.pack("<Q", 2) + b"\xff\xfe" + tensors),
        "no metadata": seal(body_of("{}", b"")),
        "metadata that is a list": around("[]"),
        "metadata without the packet": around('{"x": "y"}'),
        "a packet that is no text": around('{"packet": 3}'),
        "a packet that is no JSON": around('{"packet": "{"}'),
        "a packet that is a list": around('{"packet": "[]"}'),
        "metadata twice": around(meta + ', "__metadata__": ' + meta),
        "the packet twice": around('{"packet": "{}", ' + meta[1:]),
        "a field twice": joined('{"seed": 1, ' + text[1:], header, tensors),
        "a tensor twice": around(meta, f'"latent": {latent}, "latent": {latent}'),
        "JSON nested deeply outside": seal(body_of(deep, tensors)),
        "JSON nested deeply inside": joined(deep, header, tensors),
        "a number of 5000 digits": joined('{"seed": ' + "9" * 5000 + "}", header, tensors),
        "half a surrogate pair outside": around('{"packet": "\\ud800"}'),
        "a shape that overflows": one("[1, 4294967296, 4294967296]"),
        "a shape that overflows to a fit": one("[1, 4, 4611686018427387904, 4, 4]"),
        "a shape below zero": one("[1, -4, -4, 4]"),
        "a shape of fractions": one("[1, 4.0, 4, 4]"),
        "a shape larger than its bytes": one("[1, 4, 4, 5]"),
        "a shape of a huge number": one("[1, " + "9" * 5000 + "]"),
        "an empty shape of great size": one("[0, 4611686018427387904, 8]", "[0, 0]"),
        "bytes before the start": one("[1, 4, 4, 4]", "[-256, 0]"),
        "bytes past the end": one("[1, 4, 4, 4]", "[256, 512]"),
        "bytes the wrong way round": one("[1, 4, 4, 4]", "[256, 0]"),
        "an unknown dtype": one("[1, 4, 4, 4]", dtype="F128"),
        "a dtype of four bits": one("[1, 4, 4, 32]", dtype="F4"),
        "strings": one("[1, 4, 4, 4]", dtype="str"),
    }


HOSTILE = hostile()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_with_a_right_checksum_are_refused(name: str) -> None:
    with pytest.raises(PacketError) as caught:
        read(HOSTILE[name], SPACE)
    assert type(caught.value) in (DamagedPacket, InvalidTensor)
    assert len(caught.value.message) < 500
