"""From what a request says to an ImageRequest with every default settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from diffusion_edge.api.schema import MAX_STEPS, EdgeOptions, ImagesBody
from diffusion_edge.config import Settings
from diffusion_edge.errors import (
    InvalidPlan,
    InvalidRequest,
    UnknownModel,
    UnsupportedSolver,
)
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.families.sizes import parse_size
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.policies import rule, served
from diffusion_edge.routing.room import too_many
from diffusion_edge.schedule import check, resolved_steps

OURS = "diffusion_edge"


def image_request(
    body: ImagesBody,
    card: FamilyCard,
    settings: Settings,
    request_id: str,
    draw_seed: Callable[[], int],
) -> ImageRequest:
    """Raises InvalidRequest in its kinds; `param` is the field's path in the body."""
    if body.model is not None and body.model != card.name:
        raise UnknownModel(
            f"there is no model {body.model[:100]!r} here; there is {card.name!r}", param="model"
        )
    options = body.diffusion_edge or EdgeOptions()
    plan = _plan(options, settings)
    width, height = _size(body.size, card)
    solver = _solver(body.solver, card)
    given_floor, given_ms = options.quality_floor, options.deadline_ms
    defaults = settings.defaults
    return ImageRequest(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        family=card.name,
        steps=_steps(body.num_inference_steps, solver, plan, card),
        seed=draw_seed() if body.seed is None else body.seed,
        solver=solver,
        guidance=card.defaults.guidance if body.guidance_scale is None else body.guidance_scale,
        width=width,
        height=height,
        images=_images(body.n or 1, settings),
        deadline_s=defaults.deadline_s if given_ms is None else given_ms / 1000,
        quality_floor=defaults.quality_floor if given_floor is None else given_floor,
        policy=_policy(options, settings),
        plan=plan,
        codec=options.codec or defaults.codec,
        request_id=request_id,
        late=options.late or "serve",
    )


def _policy(options: EdgeOptions, settings: Settings) -> str:
    """A plan is carried out by `fixed`, so no other policy can be asked for beside it."""
    param = f"{OURS}.policy"
    if options.policy is not None:
        try:
            served(options.policy)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, param=param) from None
    if options.plan is None:
        return options.policy or settings.policy
    if options.policy not in (None, "fixed"):
        raise InvalidRequest(
            f"a plan is given, so the policy cannot be {options.policy!r}; leave one of them out",
            param=param,
        )
    return "fixed"


def _plan(options: EdgeOptions, settings: Settings) -> Plan | None:
    """The plan asked for, or the config's where policy `fixed` will need one."""
    param = f"{OURS}.plan"
    if options.plan is None:
        if (options.policy or settings.policy) != "fixed":
            return None
        if settings.plan is None:
            raise InvalidPlan(
                "policy 'fixed' needs a plan such as cloud:8,edge:6,device:6", param=param
            )
        return Plan.parse(settings.plan, "fixed by the config")
    try:
        plan = Plan.parse(options.plan)
    except InvalidPlan as error:
        raise InvalidPlan(error.message, param=param) from None
    for span in plan.spans:
        if span.stage not in settings.stages:
            known = ", ".join(settings.stages)
            raise InvalidPlan(
                f"plan {plan}: there is no stage {span.stage!r}; there are {known}", param=param
            )
    if plan.steps > MAX_STEPS:
        raise InvalidPlan(f"plan {plan} has more than {MAX_STEPS} steps", param=param)
    return plan


def _images(asked: int, settings: Settings) -> int:
    """What no stage can hold at once; policies refuse what those that are needed cannot."""
    capacity = {name: stage.capacity for name, stage in settings.stages.items()}
    if asked > max(capacity.values()):
        raise too_many(asked, capacity)
    return asked


def _steps(asked: int | None, solver: str, plan: Plan | None, card: FamilyCard) -> int:
    """Resolved steps, which a plan counts: some solvers make more than they are asked for.

    What the stages could not resolve is refused here, before any work.
    """
    steps = plan.steps if plan else resolved_steps(solver, asked or card.defaults.steps)
    if plan and asked is not None and steps != resolved_steps(solver, asked):
        raise InvalidPlan(
            f"plan {plan} has {plan.steps} steps, but num_inference_steps {asked} of {solver} "
            f"comes to {resolved_steps(solver, asked)}; leave num_inference_steps out or let the "
            "plan sum to it",
            param=f"{OURS}.plan",
        )
    _check_schedule(card, solver, steps, plan if asked is None else None)
    return steps


def free_steps(
    request: ImageRequest, body: ImagesBody, card: FamilyCard, counts: Sequence[int]
) -> tuple[int, ...]:
    """The numbers of steps that the router may choose from: those of `counts`, whose quality is
    known, that the solver can make of this model, beside the request's own; none where the request
    names a number or the policy takes no choice. All are resolved."""
    if body.num_inference_steps is not None or not rule(request.policy).frees_steps:
        return ()
    found = {request.steps}
    for count in counts:
        steps = resolved_steps(request.solver, count)
        with suppress(InvalidRequest):
            _check_schedule(card, request.solver, steps, None)
            found.add(steps)
    return tuple(sorted(found)) if len(found) > 1 else ()


def _check_schedule(card: FamilyCard, solver: str, steps: int, plan: Plan | None) -> None:
    """plan: what the number of steps is from, if not from the field for it."""
    try:
        check(card.noise(), solver, steps)
    except InvalidRequest as error:
        if plan is None or error.param != "num_inference_steps":
            raise
        raise InvalidPlan(f"plan {plan}: {error.message}", param=f"{OURS}.plan") from None


def _solver(asked: str | None, card: FamilyCard) -> str:
    solver = card.defaults.solver if asked is None else asked
    if solver not in card.solvers():
        raise UnsupportedSolver(
            f"solver {solver[:100]!r} is not one of this model's: {', '.join(card.solvers())}",
            param="solver",
        )
    return solver


def _size(asked: str | None, card: FamilyCard) -> tuple[int, int]:
    if asked is None or asked == "auto":
        return card.defaults.size, card.defaults.size
    size = parse_size(asked)
    if size is None or not card.sizes.allows(*size):
        raise InvalidRequest(
            f"size {asked[:100]!r} is not one of this model's: {card.sizes}, or auto",
            param="size",
        )
    return size
