"""What a server made of a request, read from its answer. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

OK = "ok"
_OF_OTHERS = (ValueError, LookupError, TypeError, AttributeError)
"""What reading an answer raises that has another form than our server's."""


@dataclass(frozen=True)
class Answer:
    """One request: when it was due, in seconds after the start, how long its answer took from then
    on, and its outcome: `ok`, or the error's code.

    parts: steps, texts and pictures that stages made, of all images; overruns: emulated ones that
    took longer than stated. seconds: from the decision to the last image, as the server
    tells them; predicted_s: what it had foretold of them, predicted_50_s and predicted_90_s what
    one in two and nine in ten would stay below, None where it told nothing. retry_after_s: what a
    refusal says.
    """

    due_s: float
    latency_s: float
    outcome: str
    plan: str = ""
    in_time: bool = False
    parts: int = 0
    overruns: int = 0
    emulated: bool = False
    seconds: float | None = None
    predicted_s: float | None = None
    predicted_50_s: float | None = None
    predicted_90_s: float | None = None
    cost: float | None = None
    retry_after_s: float | None = None

    @property
    def foretold_s(self) -> float | None:
        """What the server said of the seconds: by what it had learned, where it had."""
        return self.predicted_s if self.predicted_50_s is None else self.predicted_50_s

    @property
    def ok(self) -> bool:
        return self.outcome == OK


def answer(due_s: float, latency_s: float, deadline_s: float, response: httpx.Response) -> Answer:
    """What a response means; one that is not of our server counts as `http_` and its status."""
    try:
        told = response.json()
        if response.status_code == httpx.codes.OK:
            return _made(due_s, latency_s, deadline_s, told["diffusion_edge"])
        after = response.headers.get("retry-after")
        code = str(told["error"]["code"])
        return Answer(due_s, latency_s, code, retry_after_s=None if after is None else float(after))
    except _OF_OTHERS:
        return Answer(due_s, latency_s, f"http_{response.status_code}")


def _made(due_s: float, latency_s: float, deadline_s: float, told: Mapping[str, Any]) -> Answer:
    spans = [span for image in told["images"] for span in image["spans"]]
    steps = sum(span["stop"] - span["start"] for span in spans)
    return Answer(
        due_s,
        latency_s,
        OK,
        plan=str(told["plan"]),
        in_time=latency_s <= deadline_s,
        parts=steps + len(spans) + len(told["images"]),  # a text each, and a picture
        overruns=sum(span["overruns"] for span in spans),
        emulated=any(told["emulated"].values()),
        seconds=told.get("seconds"),
        predicted_s=told.get("predicted_s"),
        predicted_50_s=told.get("predicted_50_s"),
        predicted_90_s=told.get("predicted_90_s"),
        cost=told.get("cost"),
    )
