"""Trains the learned link estimator on replays of recorded links.

    python -m diffusion_edge.profile.links --traces loadtest/traces --out learned.json

The network predicts how the logarithms of delay and rate differ from those of a window's harmonic
mean; the loss is that of the logarithm of a hop's seconds (Huber's, so about the absolute error).
Rates are scaled at random, by 0.1 to 3; gaps, packets, round trips and leads are drawn, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion_edge.profile.hops import (
    EVERY,
    LEADS_S,
    ROUND_TRIPS,
    SDXL,
    SHAPES,
    Recordings,
    Run,
    paced,
)
from diffusion_edge.routing.links.candidates import NEUTRAL
from diffusion_edge.routing.links.learned import MOST, Learned, Weights

TRACES = (
    "hsdpa_train_oslo",
    "lte_stationary_home_nyc",
    "lte_walking_nyc",
    "nr_stationary_tmobile",
    "nr_walking_mmwave",
    "wifi_campus_ac",
)
"""Half of the recordings; the other half is for judging."""
MIXES = (SHAPES, SDXL, EVERY)
HOPS = 120
UNITS = 12
BATCH, EPOCHS = 512, 40
RATE, DECAY = 6e-3, 1e-2
NARROW = 0.1
"""Errors up to this are squared."""


@dataclass(frozen=True)
class Examples:
    """signals (n, signals); hops (n, 4): delay_s and bytes_per_s of the base, bytes, seconds."""

    signals: NDArray[np.float64]
    hops: NDArray[np.float64]


def runs(traces: Sequence[str], count: int, seed: int) -> Iterator[Run]:
    """`count` of each trace."""
    random = np.random.default_rng(seed)
    for trace in traces:
        for _ in range(count):
            yield Run(
                trace=trace,
                mix=MIXES[int(random.integers(len(MIXES)))],
                gap_s=float(10 ** random.uniform(-1.0, 2.0)),
                scale=float(10 ** random.uniform(-1.0, 0.5)),
                rtt=ROUND_TRIPS[int(random.integers(len(ROUND_TRIPS)))],
                lead_s=float(random.choice(LEADS_S)),
                stated=(float(np.exp(random.normal(0, 0.7))), float(np.exp(random.normal(0, 0.7)))),
                hops=HOPS,
                seed=int(random.integers(1 << 30)),
            )


def examples(recordings: Recordings, asked: Iterator[Run], network: Weights) -> Examples:
    """What the network would have seen before each hop but the first."""
    signals, hops = [], []
    for run in asked:
        state = Learned.start(recordings.stated(run), network)
        for ended, sending in paced(recordings.sendings(run)):
            for each in ended:
                state = state.observe(each.hop)
            if state.hops:
                base = state.window.guess
                signals.append(state.signals(sending.asked_s))
                hop = sending.hop
                hops.append((base.delay_s, base.bytes_per_s, hop.nbytes, hop.seconds))
    return Examples(np.array(signals), np.array(hops))


def blank(signals: int) -> Weights:
    """A network that moves nothing."""
    return Weights(np.zeros((1, signals)), np.zeros(1), np.zeros((2, 1)), np.zeros(2))


def train(found: Examples, seed: int, epochs: int = EPOCHS) -> Weights:
    torch.manual_seed(seed)
    signals = torch.tensor(found.signals, dtype=torch.float32)
    delay, rate, nbytes, seconds = torch.tensor(found.hops, dtype=torch.float32).T
    hidden, out = nn.Linear(signals.shape[1], UNITS), nn.Linear(UNITS, 2)
    with torch.no_grad():
        out.weight.mul_(0.1)
        out.bias.zero_()
    parameters = [*hidden.parameters(), *out.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    steps = max(epochs * (len(signals) // BATCH), 10)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)

    def loss(rows: Tensor) -> Tensor:
        moves = MOST * torch.tanh(out(torch.tanh(hidden(signals[rows]))) / MOST)
        passing = nbytes[rows] / (rate[rows] * moves[:, 1].exp())
        predicted = torch.log(delay[rows] * moves[:, 0].exp() + passing)
        return nn.functional.huber_loss(predicted, seconds[rows].log(), delta=NARROW)

    for _ in range(steps):
        optimizer.zero_grad()
        (loss(torch.randint(0, len(signals), (BATCH,))) / NARROW).backward()  # type: ignore[no-untyped-call]  # torch has no types
        optimizer.step()
        schedule.step()
    layers = (hidden.weight, hidden.bias, out.weight, out.bias)
    return Weights(*(layer.detach().double().numpy() for layer in layers))


def as_text(weights: Weights, **told: object) -> str:
    """The file of the weights, with what is told of how they came about."""
    digits = {name: np.round(array, 5).tolist() for name, array in vars(weights).items()}
    return json.dumps({**told, **digits}, indent=None, separators=(",", ":")) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the learned link estimator.")
    parser.add_argument("--traces", type=Path, default=Path("loadtest/traces"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=80, help="of each trace")
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args()
    recordings = Recordings.read(given.traces)
    network = blank(len(Learned.start(NEUTRAL, blank(1)).signals(0.0)))
    found = examples(recordings, runs(TRACES, given.runs, given.seed), network)
    weights = train(found, given.seed)
    command = f"python -m diffusion_edge.profile.links --runs {given.runs} --seed {given.seed}"
    text = as_text(weights, command=command, traces=list(TRACES), examples=len(found.hops))
    given.out.write_text(text)


if __name__ == "__main__":
    main()
