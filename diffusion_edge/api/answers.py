"""The JSON that the API answers with."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import inf
from typing import Any

from diffusion_edge.api.inflight import Replanned
from diffusion_edge.api.schema import OutputFormat, ThrottleBody
from diffusion_edge.api.service import Emulation, GenerationResult, Service
from diffusion_edge.config import Settings
from diffusion_edge.errors import CannotBeInTime, EdgeError, QueueFull
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.calibration import Calibration
from diffusion_edge.routing.links.taken import Pair
from diffusion_edge.routing.policies import SERVED
from diffusion_edge.routing.why import Alternative, Change, Why
from diffusion_edge.view import Choice, Held, Link, StageStatus, View

Json = dict[str, Any]


def error(failed: EdgeError) -> Json:
    """`retry_after_s` is exact, where the header has whole seconds; null for what will not help."""
    told: Json = {
        "message": failed.message,
        "type": failed.type,
        "param": failed.param,
        "code": failed.code,
    }
    if isinstance(failed, QueueFull | CannotBeInTime):
        told["retry_after_s"] = failed.retry_after_s
    return {"error": told}


def images(
    result: GenerationResult, files: Sequence[bytes], output_format: OutputFormat, service: Service
) -> Json:
    """OpenAI's answer; all that is ours stands under `diffusion_edge`."""
    asked = result.request
    return {
        "created": result.created,
        "data": [{"b64_json": base64.b64encode(file).decode("ascii")} for file in files],
        "output_format": output_format,
        "size": f"{asked.width}x{asked.height}",
        "diffusion_edge": {
            **_decision(asked, result.choice, service),
            "seconds": result.seconds,
            "deadline_met": result.seconds <= asked.deadline_s,
            "images": [
                {
                    "seed": image.seed,
                    "spans": [asdict(span) for span in image.spans],
                    "hops": [asdict(hop) for hop in image.hops],
                }
                for image in result.images
            ],
            "replans": [_replanned(each) for each in result.replans],
            "warnings": list(result.warnings),
            "emulated": _emulated(service.emulation()),
        },
    }


def _replanned(each: Replanned) -> Json:
    """An image whose plan was chosen again in flight: from which plan to which one, when `at` of
    its steps were known to be done, and why."""
    return {
        "image": each.image,
        "at": each.at,
        "from": str(each.before),
        "to": str(each.after),
        "reason": each.after.reason,
    }


def plan(
    asked: ImageRequest, choice: Choice, view: View, why: Why | None, service: Service
) -> Json:
    """What would be done now, and what that was decided from.

    `cells` are those of the latent; the stages' `step_s` is by cells and then by rows of a forward
    pass, `decode_s` by cells. `packet_bytes` and `packet_codecs` are by hand-off step, from 0 to
    the number of steps; the bytes are another family's where `emulated` says so. `age_s` has the
    seconds since each stage's report, from which the times of the images that it holds count.
    What a link is `known` by, see `_link`. What `calibration` says of predictions, see
    `_calibration`. `why` is null where the policy compares no plans.
    """
    return {
        "object": "plan",
        **_decision(asked, choice, service),
        "why": why and _why(why),
        "calibration": _calibration(service.calibration),
        "prices_per_s": dict(view.price_per_s),
        "cells": view.cells,
        "packet_bytes": list(view.packet_bytes),
        "packet_codecs": list(view.codecs),
        "stages": stages(view.stages),
        "age_s": dict(view.age_s),
        "links": [_link(pair, link, service) for pair, link in sorted(view.links.items())],
        "warnings": list(service.warnings(asked)),
        "emulated": _emulated(service.emulation()),
    }


def _calibration(known: Calibration) -> Json:
    """By the last requests that were served: how far predictions were in the median from the
    seconds these took (`_50`: how far `predicted_50_s` was); what one in two and nine in ten stayed
    below, over `predicted_s`; and the share of those that were told `predicted_90_s` and stayed
    below it. null before enough were. `slip`: times its forecast, with slow hops, by which a
    request is in time or late."""
    return {
        "served": known.served,
        "median_error": known.median_error,
        "median_error_50": known.median_error_50,
        "actual_50": known.usual,
        "actual_90": known.slow,
        "slip": known.slip,
        "below_90": known.below_share,
    }


def _why(why: Why) -> Json:
    """By kind of plan: the best one, how far it is from being taken, and the smallest change of one
    thing that would put one of its kind before the chosen plan, all else being as it is."""
    return {
        "kind": why.kind,
        "plans_above_floor": why.plans,
        "alternatives": [_alternative(each) for each in why.alternatives],
        "kinds_left_out": why.left_out,
    }


def _alternative(each: Alternative) -> Json:
    return {
        "kind": each.kind,
        "plan": str(each.plan),
        "predicted_s": each.predicted_s,
        "cost": each.cost,
        "price": each.price,
        "quality": each.quality,
        "quality_bound": each.quality_bound,
        "late_by_s": each.late_s,
        "below_floor_by": each.short,
        "dearer_by": each.dearer,
        "slower_by_s": each.slower_s,
        "not_taken": each.not_taken,
        "comes_first_with": each.change and _change(each.change),
    }


def _change(change: Change) -> Json:
    if change.what == "deadline_s":
        return {"deadline_ms": round(change.to * 1000, 3)}
    if change.what == "price_per_s":
        return {"prices_per_s": {change.tier: change.to}}
    return {change.what: change.to}


def throttle(between: tuple[str, str], asked: ThrottleBody) -> Json:
    """What an emulated link has been told."""
    return {
        "object": "throttle",
        "between": list(between),
        "factor": asked.factor,
        "restart": asked.restart,
        "emulated": True,
    }


def models(service: Service) -> Json:
    return {"object": "list", "data": [model(service)]}


def model(service: Service) -> Json:
    card = service.card
    return {
        "id": card.name,
        "object": "model",
        "created": 0,
        "owned_by": "diffusion-edge",
        "diffusion_edge": {
            "title": card.title,
            "licence": card.licence,
            "sizes": card.sizes.described(),
            "defaults": card.defaults.model_dump(),
            "solvers": list(card.solvers()),
            "policies": list(SERVED),
            "stages": {name: stage.tier for name, stage in service.settings.stages.items()},
            "execution": {n: s.execution for n, s in sorted(service.board.statuses().items())},
            "attention": {n: s.attention for n, s in sorted(service.board.statuses().items())},
            "vocabulary": list(card.vocabulary),
        },
    }


def stages(statuses: Mapping[str, StageStatus]) -> Json:
    """By name; `emulated` says that the seconds are stated by the config. What is `held` and was
    not promised to be in time has no `latest_s`, and no `told_s` if its text comes with it."""
    return {
        name: {**asdict(statuses[name]), "held": list(map(_held, statuses[name].held))}
        for name in sorted(statuses)
    }


def _held(image: Held) -> Json:
    return {name: v if v != inf else None for name, v in asdict(image).items()}


def _decision(asked: ImageRequest, choice: Choice, service: Service) -> Json:
    """`predicted_50_s` and `predicted_90_s`, which one in two and nine in ten such requests stay
    below, are null before enough were served. `steps_chosen_from` is null where the request named
    a number of steps or a plan. `late_by_s` and `below_floor_by` say what of deadline and floor is
    not held, 0 where it is. `late` says that it was decided that the request cannot be in time;
    `predicted_s` in an answer is then its wait and what was foretold when it was begun. `quality`
    is relative to the reference alone in its default number of steps, as estimated;
    `quality_bound` is what the floor was held against. Both are null where it was not measured."""
    settings = service.settings
    order = [settings.stages[span.stage].model for span in choice.plan.spans]
    known = service.quality.knows(order, choice.plan.steps, asked.size)
    return {
        "request_id": asked.request_id,
        "model": asked.family,
        "plan": str(choice.plan),
        "spans": _spans(asked, choice.plan, settings),
        "policy": asked.policy,
        "reason": choice.reason,
        "predicted_s": choice.predicted_s,
        "predicted_50_s": choice.predicted_50_s,
        "predicted_90_s": choice.predicted_90_s,
        "late_by_s": choice.late_s(asked.deadline_s),
        "below_floor_by": max(asked.quality_floor - choice.quality_bound, 0.0),
        "late": choice.late,
        "cost": choice.cost,
        "price": choice.price,
        "quality": choice.quality if known else None,
        "quality_bound": choice.quality_bound if known else None,
        "runner_up": (
            None
            if choice.runner_up is None
            else {"plan": str(choice.runner_up), "predicted_s": choice.runner_up_s}
        ),
        "deadline_ms": round(asked.deadline_s * 1000, 3),
        "quality_floor": asked.quality_floor,
        "seed": asked.seed,
        "steps": asked.steps,
        "steps_chosen_from": list(asked.free_steps) or None,
        "solver": asked.solver,
        "guidance_scale": asked.guidance,
        "codec": asked.codec,
        "codecs": list(choice.plan.codecs),
    }


def _link(pair: Pair, link: Link, service: Service) -> Json:
    """What a link was taken for, and how that is known: `guessed`, `stated` by the config,
    `measured`, or `stale` when that is long ago.

    `hops` taught it, `probes` of them sent for that alone; the last one ended `age_s` ago. `slow`:
    what one hop in ten takes at least, over what is predicted. `emulated`: whether it is acted out.
    """
    links = service.board.links
    told, (source, target) = links.view(pair), pair
    return {
        "source": source,
        "target": target,
        **asdict(link),
        "slow": told.slow,
        "known": told.known,
        "hops": told.hops,
        "probes": links.probes(pair),
        "age_s": told.age_s,
        "emulated": any(set(pair) == set(ends) for ends in service.emulation().links),
    }


def _spans(asked: ImageRequest, chosen: Plan, settings: Settings) -> list[Json]:
    return [
        {
            "stage": span.stage,
            "tier": settings.stages[span.stage].tier,
            "start": span.start,
            "stop": span.stop,
            "guidance_scale": asked.guidance if span.guidance is None else span.guidance,
        }
        for span in chosen.spans
    ]


def _emulated(emulation: Emulation) -> Json:
    """What of this deployment is stated by the config; nothing, where both lists are empty.

    `packet_bytes` names the family whose bytes links are charged with, null for the packets' own.
    """
    return {
        "stages": list(emulation.stages),
        "links": [f"{a}-{b}" for a, b in emulation.links],
        "packet_bytes": emulation.packet_bytes,
    }
