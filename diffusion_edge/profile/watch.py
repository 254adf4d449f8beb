"""Judges what a server kept of its requests (`api.watch`): does the quality table still tell the
truth?

The reference draws every prompt anew with the seed that was served, and both pictures are scored.
Quality of what was served is the ratio of both means, as in the table. Its interval reaches three
standard errors to either side rather than two: whoever looks again and again at a growing folder
sees a rare outcome in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diffusion_edge.api.watch import Watched
from diffusion_edge.errors import ConfigError, InvalidRequest
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.profile import batch, intervals
from diffusion_edge.profile.measure import BATCH, of_size, reference_of
from diffusion_edge.profile.metric import Metric
from diffusion_edge.request import Picture
from diffusion_edge.routing.quality import Interval

REACH = 3.0
"""Standard errors."""


@dataclass(frozen=True)
class Seen:
    """Quality of n served pictures with its interval, and the means of what the table promised of
    them. passed: requests that the metric could not judge, or of other weights."""

    quality: float
    interval: Interval
    promised: float
    bound: float
    n: int
    passed: int

    @property
    def is_true(self) -> bool:
        """Whether the promise may still hold."""
        return self.interval[1] >= self.bound


def kept(folder: Path) -> list[tuple[Watched, Picture]]:
    """What a server has kept, the oldest first. Raises InvalidRequest if there is no such folder,
    and ConfigError for a file that is wrong."""
    if not folder.is_dir():
        raise InvalidRequest(f"{folder}: there is no such folder")
    return [
        (Watched.read(file), _picture(file.with_suffix(".png")))
        for file in sorted(folder.glob("*.json"))
    ]


def _picture(file: Path) -> Picture:
    try:
        image = Image.open(file).convert("RGB")
    except (OSError, SyntaxError) as error:  # the latter of a PNG that is damaged
        reason = getattr(error, "strerror", None) or "this is no whole picture"
        raise ConfigError(f"{file}: {reason}", file=str(file)) from None
    return Picture(image.width, image.height, image.tobytes())


def judge(
    card: FamilyCard,
    metric: Metric,
    weights: str,
    watched: Sequence[tuple[Watched, Picture]],
    advance: Callable[[int], None],
) -> Seen:
    """Raises InvalidRequest where there are fewer than two that can be judged, or the reference
    scored 0 on all."""
    current = [pair for pair in watched if pair[0].weights == weights]
    scored = list(_scored(card, metric, current, advance))
    ours, theirs = [score for _, score, _ in scored], [score for _, _, score in scored]
    if len(scored) < 2 or not any(theirs):
        raise InvalidRequest(
            f"{len(scored)} of {len(watched)} kept requests can be judged; at least two are needed "
            "on which the reference does not score 0"
        )
    quality = sum(ours) / sum(theirs)
    reach = (intervals.of_ratio(ours, theirs)[1] - quality) * REACH / intervals.Z
    return Seen(
        quality=quality,
        interval=(quality - reach, quality + reach),
        promised=sum(record.quality for record, *_ in scored) / len(scored),
        bound=sum(record.quality_bound for record, *_ in scored) / len(scored),
        n=len(scored),
        passed=len(watched) - len(scored),
    )


def _scored(
    card: FamilyCard,
    metric: Metric,
    watched: Sequence[tuple[Watched, Picture]],
    advance: Callable[[int], None],
) -> Iterator[tuple[Watched, float, float]]:
    """With the scores of the served picture and of the reference's."""
    stages = batch.load_stages(card, [card.reference])
    for edge in sorted({record.width for record, _ in watched}):
        same = [pair for pair in watched if pair[0].width == edge]
        for start in range(0, len(same), BATCH):
            part = same[start : start + BATCH]
            asked = [of_size(card, edge).request(r.prompt, r.seed) for r, _ in part]
            ((_, drawn),) = batch.pictures(stages, asked, [reference_of(card)])
            for (record, served), reference in zip(part, drawn, strict=True):
                scores = _scores(metric, record.prompt, served, reference)
                if scores is not None:
                    yield record, *scores
            advance(len(part))


def _scores(
    metric: Metric, prompt: str, served: Picture, reference: Picture
) -> tuple[float, float] | None:
    """None for a prompt that the metric does not judge."""
    try:
        return (
            metric.score(prompt, served, reference),
            metric.score(prompt, reference, reference),
        )
    except InvalidRequest:
        return None
