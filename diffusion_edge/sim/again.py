"""Policies that choose again, and those that learn: what a run tells them, and what follows."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from diffusion_edge.config import Replan
from diffusion_edge.plan import Plan
from diffusion_edge.routing.due import is_late
from diffusion_edge.routing.learning import NOTHING, Learned, learn, now, outcome
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.replan import again, standing, went
from diffusion_edge.routing.rule import Finished, Rule
from diffusion_edge.sim.replay import Replay
from diffusion_edge.sim.running import Job, Running
from diffusion_edge.view import Choice, View


class Again:
    """learned: of all routers together. revising: whether there was a request whose plan may be
    revised. replay: None where no policy looks at it. replan:
    of others."""

    def __init__(self, quality: QualityTable, replay: Replay | None, replan: Replan) -> None:
        self.learned: Learned = NOTHING
        self.revising = False
        self._quality, self._replay, self._replan = quality, replay, replan

    def rule(self, policy: str) -> Rule:
        """As it is after what it has learned."""
        return now(policy, self.learned)

    def begins(self, running: Running) -> None:
        self.revising |= self.rule(running.asked.request.policy).revise is not None

    def asks(self, job: Job) -> bool:
        """Whether the image's plan may be revised."""
        running = job.running
        if running.over:
            return False
        return bool(job.wanted) or self.rule(running.asked.request.policy).revise is not None

    def revised(self, job: Job, position: int, view: View) -> Plan | None:
        """The image's plan anew, after a step; None if it stays as it is."""
        running, wanted = job.running, job.wanted
        job.wanted = None
        if wanted is not None:
            return wanted if wanted.spans[job.at].stop >= position else None
        revise, request = self.rule(running.asked.request.policy).revise, running.asked.request
        if revise is None or self._replay is None:
            return None
        told = self._replay.standing(job.plan, position, request, job.image, running.view)
        plan = revise(request, view, told)
        return plan and plan.with_guidance(view.guidance)

    def looks(self, running: Running) -> bool:
        """Whether its plan may be chosen again in flight: one that was promised to be in time."""
        request, told = running.asked.request, running.told
        may = self._replan.most > 0 and self.rule(request.policy).may_replan
        return may and not is_late(request, told, running.view)

    def wants(self, job: Job, view: View, elapsed_s: float) -> bool:
        """Whether an image on a stage is to go by another plan from its next step on."""
        if job.guest is None or job.wanted or job.replans >= self._replan.most:
            return False
        request = job.running.asked.request
        found = standing(request, view, job.plan, job.at, job.image, elapsed_s)
        job.wanted = None if found is None else again(request, view, self._quality, found)
        self.revising |= job.wanted is not None
        return job.wanted is not None

    def of_plans(self, running: Running) -> Choice:
        """The choice, when images went by other plans than it says."""
        plans = [job.plan for job in running.jobs]
        request = running.asked.request
        return went(running.told, plans, request, running.view, self._quality)

    def after(self, running: Running, view: View, elapsed_s: float) -> Choice | None:
        """What is chosen when the pictures are there: for making them again, at the cost of both;
        None if they are given out. Then the choice says how good they are."""
        request, told = running.asked.request, running.told
        after = self.rule(request.policy).after
        if after is None or self._replay is None:
            return None
        score = self._replay.score(told.plan, request, running.view)
        running.score = score if running.score is None else running.score
        plan = after(request, view, Finished(told.plan, score, elapsed_s))
        if plan is None:
            known = min(self._replay.relative(score, told.plan.steps), 1.0)
            bound = max(told.quality_bound, known)
            running.told = replace(told, quality_bound=bound, quality=max(told.quality, known))
            return None
        plan = plan.with_guidance(view.guidance)
        anew = went(told, [plan], request.in_steps(plan.steps), view, self._quality)
        return replace(anew, cost=told.cost + anew.cost)

    def over(self, running: Running, seconds: float | None) -> None:
        """seconds: None where a request has no pictures."""
        asked = running.asked
        if self.rule(asked.request.policy).observe is None:
            return
        spent = inf if seconds is None else seconds
        request = asked.request.in_steps(asked.steps)
        told = outcome(request, running.view, running.told, asked.came_s, spent, running.score)
        self.learned = learn(self.learned, told)
