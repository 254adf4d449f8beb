"""What a stage tells of itself: what it holds, what it does now, what that will take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diffusion_edge.engine.ahead import Notice
from diffusion_edge.engine.job import Job
from diffusion_edge.engine.parts import Parts
from diffusion_edge.view import Turn


def queue_s(jobs: Iterable[Job], parts: Parts) -> float:
    """About how much later an image is done that comes now."""
    seconds, around_s = parts.seconds, 0.0
    work: dict[int, list[tuple[int, int]]] = {}
    for job in jobs:
        work.setdefault(job.sample.cells, []).append((job.steps_left, job.sample.rows))
        around_s += job.around_s(seconds)
    return around_s + sum(parts.steps_s(cells, left) for cells, left in work.items())


def pictures_first(jobs: Iterable[Job], parts: Parts) -> list[Job]:
    """All jobs, those first that wait for their pictures, in that order."""
    waiting = [made.item for made in parts.pictures.line.waiting()]
    places = {id(trajectory): place for place, trajectory in enumerate(waiting)}

    def place(job: Job) -> int:
        return places.get(id(job.entry and job.entry.trajectory), len(places))

    return sorted(jobs, key=place)


def turn(jobs: Sequence[Job], notices: Sequence[Notice], parts: Parts, now: float) -> Turn:
    """jobs, notices: as they are told."""
    waiting, doing = tuple(parts.turns.waiting), parts.turns.doing
    if doing is None:
        return Turn(waiting=waiting)
    items = {id(item) for item in doing.items}
    images = tuple(
        place for item in doing.items for place, job in enumerate(jobs) if job.is_among({id(item)})
    )
    ahead = tuple(k for k, n in enumerate(notices) if n.asked and id(n.asked.item) in items)
    return Turn(doing.work, images, max(doing.ends_at - now, 0.0), waiting, ahead)
