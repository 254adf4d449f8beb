"""Runs spans: one batched step for trajectories that may each stand somewhere else.

    take_up: packets -> trajectories   step: trajectories -> trajectories
    finish: trajectory -> packet         decode_all: trajectories -> pictures

The plain function `run_span` and the server drive the same `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_edge.errors import InvalidTensor, NotFinite, WrongPosition
from diffusion_edge.families.base import Conditioning, Family, join, split
from diffusion_edge.kernels.guided_step import guided, stepped
from diffusion_edge.packet import Packet
from diffusion_edge.plan import Span
from diffusion_edge.request import Picture
from diffusion_edge.schedule import Schedule
from diffusion_edge.solver import Table, build_table

Predict = Callable[[Tensor, Tensor, Tensor, Conditioning], Tensor]
"""As `Family.predict`."""


@dataclass(frozen=True)
class Trajectory:
    """One image on its way: latent (1, ...), the solver's history, and the step that comes next.

    `seed` is what a stochastic solver's noise comes from. `negative` is None where guidance is off.
    `span` says for which stage, and from which step on, it was begun; `execution` how its model is
    run there.
    """

    latent: Tensor
    history: tuple[Tensor, ...]
    position: int
    schedule: Schedule
    table: Table
    seed: int
    guidance: float
    positive: Conditioning
    negative: Conditioning | None
    span: Span
    execution: str = "eager"

    @property
    def guided(self) -> bool:
        return self.negative is not None


def initial_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Unit noise (1, *shape), the numbers that a stock pipeline's CPU generator gives."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32)


def step_noise(shape: Sequence[int], seed: int, step: int) -> Tensor:
    """Unit noise that a stochastic solver adds at `step`, of any shape.

    A counter-based generator keyed by (seed, step), so that it depends neither on other samples
    nor on which steps ran here, and rejection sampling in scalar code, so that it is the same on
    every CPU.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, step], dtype=np.uint64)))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


Texts = Sequence[Conditioning]
"""A packet's, encoded: the prompt and, where guidance doubles the batch, the negative one."""


@dataclass(frozen=True)
class Encoded:
    """trajectory: begun from the texts; None of a packet whose latent is still to come."""

    texts: Texts
    trajectory: Trajectory | None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for text in self.texts for tensor in text.tensors.values())


def take_up(family: Family, packets: Sequence[Packet]) -> list[Encoded]:
    """Encodes the texts of packets in one call, and begins those whose latents have come. Raises
    what `begun` does."""
    return [
        Encoded(own, None if packet.plan.start > packet.position else begun(family, packet, own))
        for packet, own in zip(packets, encode_all(family, packets), strict=True)
    ]


@torch.inference_mode()
def encode_all(family: Family, packets: Sequence[Packet]) -> list[Texts]:
    """Of each packet's next span, in one call."""
    texts = [_texts(family, packet) for packet in packets]
    encoded = split(family.encode_text([text for own in texts for text in own]))
    ends = list(accumulate(map(len, texts)))
    return [encoded[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def begin(family: Family, packet: Packet) -> Trajectory:
    """Encodes its texts and begins it. Raises what `begun` does."""
    (texts,) = encode_all(family, [packet])
    return begun(family, packet, texts)


def _texts(family: Family, packet: Packet) -> list[str]:
    """What is to be encoded: the prompt and, where guidance doubles the batch, the negative one."""
    doubled = family.guiding == "doubled" and packet.guidance_now > 1
    return [packet.prompt, packet.negative_prompt] if doubled else [packet.prompt]


@torch.inference_mode()
def begun(family: Family, packet: Packet, texts: Texts) -> Trajectory:
    """Before a first step the noise is drawn. Raises InvalidTensor if a latent does not fit the
    family and size."""
    schedule = packet.schedule or family.schedule(
        packet.solver, packet.steps, packet.width, packet.height
    )
    table = build_table(packet.solver, schedule)
    shape = family.latent_shape(packet.width, packet.height)
    if packet.latent is None:
        latent = initial_noise(shape, packet.seed) * table.initial_scale
        history = tuple(torch.zeros_like(latent) for _ in range(table.history))
    else:
        latent, history = packet.latent, packet.history
        if tuple(latent.shape[1:]) != shape or len(history) != table.history:
            raise InvalidTensor(
                f"a {packet.width}x{packet.height} image has latents of shape {shape} and "
                f"{packet.solver} {table.history} history tensors; the packet has "
                f"{tuple(latent.shape[1:])} and {len(history)}"
            )
    positive, *negative = texts
    return Trajectory(
        latent=latent.to(family.device),
        history=tuple(tensor.to(family.device) for tensor in history),
        position=packet.position,
        schedule=schedule,
        table=table,
        seed=packet.seed,
        guidance=packet.guidance_now,
        positive=positive,
        negative=negative[0] if negative else None,
        span=packet.plan.spans[0],
        execution=family.execution,
    )


def step(
    family: Family, trajectories: Sequence[Trajectory], predict: Predict | None = None
) -> list[Trajectory]:
    """One step of every trajectory: one forward pass, one solver step.

    The trajectories must share the latent shape and be all guided or all unguided; solver,
    schedule, position and guidance value may differ. predict: the forward pass, the family's own
    unless the caller runs it in some way of its own.
    """
    return advance(trajectories, _predicted(family, trajectories, predict))


def output(
    family: Family, trajectories: Sequence[Trajectory], predict: Predict | None = None
) -> Tensor:
    """The model's output (B, ...) for the next step of every trajectory, as `step` takes them: one
    forward pass, guided."""
    predicted = _predicted(family, trajectories, predict)
    return guided(predicted, _guidance(trajectories).to(predicted.device))


@torch.inference_mode()
def _predicted(
    family: Family, trajectories: Sequence[Trajectory], predict: Predict | None
) -> Tensor:
    """One forward pass: (B, ...), or (2B, ...) of guided ones, first all without their prompts."""
    predict = predict or family.predict
    latent = torch.cat([t.latent for t in trajectories])
    device, column = latent.device, (-1,) + (1,) * (latent.ndim - 1)
    scales = torch.stack([t.table.input_scale[t.position] for t in trajectories]).to(device)
    timesteps = torch.stack([t.table.timesteps[t.position] for t in trajectories]).to(device)
    guidance = _guidance(trajectories).to(device)
    scaled = latent * scales.view(column)
    positive = join([t.positive for t in trajectories])
    negatives = [t.negative for t in trajectories if t.negative is not None]
    if negatives:
        both = join([*negatives, positive])
        return predict(torch.cat([scaled, scaled]), timesteps.repeat(2), guidance.repeat(2), both)
    return predict(scaled, timesteps, guidance, positive)


def _guidance(trajectories: Sequence[Trajectory]) -> Tensor:
    return torch.tensor([t.guidance for t in trajectories])


@torch.inference_mode()
def advance(trajectories: Sequence[Trajectory], predicted: Tensor) -> list[Trajectory]:
    """The solver step of every trajectory with the model's output for it: (B, ...), or (2B, ...)
    that is yet to be guided."""
    latent = torch.cat([t.latent for t in trajectories])
    latents, *histories = stepped(
        latent,
        _rows(trajectories).to(latent.device),
        predicted,
        _guidance(trajectories).to(latent.device),
        _noises(trajectories),
        _histories(trajectories, latent),  # a copy, which may be written over
    )
    return [
        replace(
            t,
            latent=latents[i : i + 1],
            history=tuple(h[i : i + 1] for h in histories[: t.table.history]),
            position=t.position + 1,
        )
        for i, t in enumerate(trajectories)
    ]


def _noises(trajectories: Sequence[Trajectory]) -> Tensor | None:
    """Noise (B, ...) of the steps, zeros where a solver adds none; None where none does."""
    if not any(t.table.stochastic for t in trajectories):
        return None
    return torch.cat(
        [
            step_noise(t.latent.shape, t.seed, t.position).to(t.latent.device)
            if t.table.stochastic
            else torch.zeros_like(t.latent)
            for t in trajectories
        ]
    )


def _rows(trajectories: Sequence[Trajectory]) -> Tensor:
    """The steps' matrices (B, 1 + H, 3 + H), short histories padded with zeros."""
    longest = max(t.table.history for t in trajectories)
    missing = [longest - t.table.history for t in trajectories]
    return torch.stack(
        [
            F.pad(t.table.weights[t.position], (0, extra, 0, extra))
            for t, extra in zip(trajectories, missing, strict=True)
        ]
    )


def _histories(trajectories: Sequence[Trajectory], like: Tensor) -> list[Tensor]:
    """History tensors (B, ...) by age, zeros where a solver keeps fewer."""
    longest = max(t.table.history for t in trajectories)
    empty = torch.zeros_like(like[:1])
    return [
        torch.cat([t.history[k] if k < t.table.history else empty for t in trajectories])
        for k in range(longest)
    ]


def finish(packet: Packet, trajectory: Trajectory) -> Packet:
    """The packet as it leaves its first span for the next one. Raises WrongPosition early, and
    NotFinite."""
    rest = packet.plan.after_first()
    if rest is None or rest.start != trajectory.position:
        raise WrongPosition(
            f"the trajectory stands at step {trajectory.position}; the plan has no span from there"
        )
    _check_finite(trajectory, trajectory.latent, *trajectory.history)
    return replace(
        packet,
        latent=trajectory.latent,
        history=trajectory.history,
        schedule=trajectory.schedule,
        position=trajectory.position,
        plan=rest,
        codec=packet.plan.codecs[0],
        execution=trajectory.execution,
    )


def _check_finite(trajectory: Trajectory, *tensors: Tensor) -> None:
    """At the end of a span; after every step a GPU would have to be waited for."""
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        span = trajectory.span
        raise NotFinite(
            f"the stage {span.stage!r} made NaN or infinite values of the latent in its steps from "
            f"{span.start} to {trajectory.position}; its model may not bear this guidance or dtype"
        )


@torch.inference_mode()
def decode_all(family: Family, trajectories: Sequence[Trajectory]) -> list[Picture]:
    """The pictures of trajectories of one latent shape that have taken their last step.

    Raises NotFinite, with nothing decoded: such a latent would make a black picture.
    """
    for trajectory in trajectories:
        _check_finite(trajectory, trajectory.latent)
    return family.decode(torch.cat([t.latent for t in trajectories]))


def decode(family: Family, trajectory: Trajectory) -> Picture:
    """`decode_all` of one."""
    return decode_all(family, [trajectory])[0]


def warnings_of(family: Family, packet: Packet) -> tuple[str, ...]:
    """A sentence for a negative prompt that the model has no use for, and for every word of the
    prompts that the family does not know."""
    unused = packet.negative_prompt and family.guiding != "doubled"
    unknown = dict.fromkeys(
        word for text in _texts(family, packet) for word in family.unknown_words(text)
    )
    return (
        *(("this model takes no negative prompt; it was not used",) if unused else ()),
        *(f"the word {word!r} is not known to this family" for word in unknown),
    )


def run_steps(family: Family, trajectory: Trajectory, steps: int) -> Trajectory:
    """`steps` steps of one trajectory."""
    for _ in range(steps):
        (trajectory,) = step(family, [trajectory])
    return trajectory


def run_span(family: Family, packet: Packet, span: Span) -> Packet:
    """The packet after `span`, which must be the first of its plan and not the last.

    Needs neither Ray nor a server. The last span ends in a picture: see `run_last_span`.
    """
    if packet.plan.spans[0] != span:
        raise WrongPosition(f"the packet's plan goes on with {packet.plan.spans[0]}, not {span}")
    return finish(packet, run_steps(family, begin(family, packet), span.steps))


def run_last_span(family: Family, packet: Packet) -> tuple[Tensor, Picture]:
    """The final latent (1, ...) and its picture, of a packet with one span left."""
    trajectory = run_steps(family, begin(family, packet), packet.plan.steps)
    return trajectory.latent, decode(family, trajectory)
