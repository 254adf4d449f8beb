"""What is decided of a request, whoever carries it out: a policy's plan, or a refusal."""

from __future__ import annotations

from dataclasses import replace

from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import elastic
from diffusion_edge.routing.calibration import Calibration
from diffusion_edge.routing.late import refuse
from diffusion_edge.routing.learning import NOTHING, Learned, now
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.view import Choice, View


def seen(view: View, calibration: Calibration) -> View:
    """The view with what requests take over what was forecast for them, to decide from."""
    return replace(view, slip=calibration.slip)


def decided(
    request: ImageRequest,
    view: View,
    quality: QualityTable,
    calibration: Calibration,
    learned: Learned = NOTHING,
) -> Choice:
    """By the request's policy, as it has learned. Raises NoPlan, QueueFull, CannotBeInTime and
    InvalidRequest."""
    choice = now(request.policy, learned).choose(request, view, quality)
    refuse(request, choice, view)
    return settled(choice, view, calibration)


def begun(
    request: ImageRequest,
    view: View,
    quality: QualityTable,
    calibration: Calibration,
    waited_s: float,
    waiting: int,
) -> Choice | None:
    """The plan of a request that waits because it cannot be in time, once it is to be begun."""
    choice = elastic.begun(request, view, quality, waited_s, waiting)
    return choice and settled(choice, view, calibration)


def settled(choice: Choice, view: View, calibration: Calibration) -> Choice:
    """With the guidance of the stages' models, and with what such requests take."""
    second = choice.runner_up
    return replace(
        calibration.of(choice),
        safe_s=view.safe_s(choice.counted_s),
        plan=choice.plan.with_guidance(view.guidance),
        runner_up=second and second.with_guidance(view.guidance),
    )
