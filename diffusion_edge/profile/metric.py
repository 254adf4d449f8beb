"""What a good picture is, is a plug-in's to say: a score in [0, 1] for every picture.

A family names its metric in `family.yaml`, as module and object:

    metric: stage_models.shapes.metric:attribute_accuracy

The object is a function `score(prompt, picture, reference) -> float`, or has one of that name.
`reference` is the picture that the reference stage alone made of the same prompt and seed, in as
many steps. 1 is the best, 0 the worst. The object may also have `prompts(count, seed)`, which
gives that many prompts to measure with; otherwise prompts come from a file.

Only commands that measure import the module, never the server: what a request can reach runs no
code that a card names. Measure only families whose code you would run. The module is looked up as
`python -m` would, the current folder included.

Families without a metric are measured by the built-in `distance`.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from diffusion_edge.errors import ConfigError
from diffusion_edge.request import Picture

Score = Callable[[str, Picture, Picture], float]
Prompts = Callable[[int, int], Sequence[str]]
DISTANCE = "distance"


@dataclass(frozen=True)
class Metric:
    """A metric as it was found; `prompts` None where it has none of its own."""

    name: str
    function: Score
    prompts: Prompts | None = None

    def score(self, prompt: str, picture: Picture, reference: Picture) -> float:
        """Raises ConfigError for what is no number in [0, 1]."""
        value = self.function(prompt, picture, reference)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 1:
            raise _wrong(self.name, f"gave {value!r} for {prompt!r}; a score is a number in [0, 1]")
        return number


def load_metric(name: str) -> Metric:
    """The metric of that name. Raises ConfigError, which says what of it is wrong."""
    if name == DISTANCE:
        return Metric(DISTANCE, distance)
    module_name, _, path = name.partition(":")
    if not module_name or module_name.startswith(".") or not path:
        raise _wrong(
            name,
            "is not module:object, such as stage_models.shapes.metric:attribute_accuracy, "
            f"nor the built-in {DISTANCE!r}",
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: object = importlib.import_module(module_name)
    except ImportError as error:
        raise _wrong(name, f"cannot be imported from {os.getcwd()}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise _wrong(name, f"is not there: module {module_name!r} has no {path!r}")
        found = getattr(found, part)
    score = getattr(found, "score", found)
    if not callable(score):
        raise _wrong(name, "is neither a function nor has it a function 'score'")
    prompts = getattr(found, "prompts", None)
    return Metric(name, cast(Score, score), cast("Prompts | None", prompts))


def distance(prompt: str, picture: Picture, reference: Picture) -> float:
    """1 - NRMSE: one less the root of the mean squared difference of all values, over 255.

    How near a picture is to the reference's own, for families that nobody can judge. Its limits:
    a picture that is as good but arranged otherwise counts as wrong, and so nothing can be better
    than the reference; and it is blunt: pictures that have nothing in common still score about a
    half. Plans are to be compared by it, not families.
    """
    ours, theirs = (np.frombuffer(p.rgb, np.uint8).astype(np.float64) for p in (picture, reference))
    return 1.0 - float(np.sqrt(np.mean(np.square(ours - theirs)))) / 255.0


def _wrong(name: str, what: str) -> ConfigError:
    return ConfigError(f"metric {name!r} {what}", key="metric")
