"""Keeps one finished request in so many, for `diffusion-edge profile --watch` to judge.

Only requests are counted that a quality table speaks of: its solver and guidance, packets as they
are, no negative prompt, a plan, number of steps and size that are known. What is kept holds the
prompt and the picture, so nothing is kept unless the config says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from diffusion_edge.api.png import Made, encode
from diffusion_edge.api.service import GenerationResult
from diffusion_edge.config import Settings, Watch
from diffusion_edge.plan import EXACT, Plan
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.tables import Table

log = logging.getLogger(__name__)


class Watched(Table):
    """The first image of a request: a JSON file, with the picture in the PNG beside it.

    plan: over the family's stage models. quality, quality_bound: what the table said of it.
    """

    prompt: str
    plan: str
    seed: int
    width: int
    height: int
    quality: float
    quality_bound: float
    weights: str


@dataclass
class Watcher:
    """Counts; writes every `watch.every`th to the folder, where the last `watch.most` stay."""

    watch: Watch
    settings: Settings
    quality: QualityTable
    count: int = 0

    def saw(self, result: GenerationResult) -> bool:
        """Whether this one is to be kept."""
        if not self._is_known(result):
            return False
        self.count += 1
        return self.count % self.watch.every == 0

    def keep(self, result: GenerationResult) -> None:
        """Blocks. What cannot be written is logged: nobody waits for it."""
        asked, choice = result.request, result.choice
        watched = Watched(
            prompt=asked.prompt,
            plan=str(_of_models(choice.plan, self.settings)),
            seed=asked.seed,
            width=asked.width,
            height=asked.height,
            quality=choice.quality,
            quality_bound=choice.quality_bound,
            weights=self.quality.weights,
        )
        folder = Path(self.watch.folder)
        file = folder / f"{result.created:012d}-{asked.request_id}.json"
        picture = encode(result.images[0].picture, "png", Made(asked, choice.plan))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.with_suffix(".png").write_bytes(picture)
            file.write_text(watched.model_dump_json())
            for old in sorted(folder.glob("*.json"))[: -self.watch.most]:
                old.unlink()
                old.with_suffix(".png").unlink(missing_ok=True)
        except OSError as error:
            log.warning("a watched request was not kept: %s", error)

    def _is_known(self, result: GenerationResult) -> bool:
        asked, plan = result.request, result.choice.plan
        models = [span.stage for span in _of_models(plan, self.settings).spans]
        return (
            (asked.solver, asked.guidance) == (self.quality.solver, self.quality.guidance)
            and not asked.negative_prompt
            and all(codec == EXACT for codec in plan.codecs)
            and all(span.guidance is None for span in plan.spans)
            and self.quality.knows(models, plan.steps, asked.size)
        )


def _of_models(plan: Plan, settings: Settings) -> Plan:
    """As a quality table knows it."""
    return Plan.of(tuple((settings.stages[span.stage].model, span.steps) for span in plan.spans))
