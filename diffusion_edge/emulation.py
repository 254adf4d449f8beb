"""What a config states where it would be measured: seconds of stages, rates of links, bytes of
packets. So one machine can act as several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field, PlainValidator, model_validator

from diffusion_edge.curves import Curve
from diffusion_edge.strict import Disagreement, Strict, cut, number_hint
from diffusion_edge.view import Link

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MAX_ROWS = 1024


def _stated_step(given: object) -> float | Curve:
    """Seconds of one sample, or by rows; JSON, in which Ray sends a config, has these as text."""
    if not isinstance(given, Mapping):
        return _stated_seconds(given)
    by_rows: dict[int, float] = {}
    for key, value in given.items():
        rows = int(key) if isinstance(key, str) and key.isdecimal() else key
        if not isinstance(rows, int) or isinstance(rows, bool) or not 1 <= rows <= MAX_ROWS:
            message = f"rows are whole numbers from 1 to {MAX_ROWS}, not {cut(key)}"
            raise Disagreement((key if isinstance(key, int) else str(key),), message)
        try:
            by_rows[rows] = _stated_seconds(value)
        except ValueError as error:
            raise Disagreement((rows,), str(error)) from None
    if 1 not in by_rows:
        raise ValueError(
            "the seconds of 1 row are missing, of a sample that steps alone; "
            "right is a number, or seconds by rows such as {1: 0.08, 4: 0.12}"
        )
    for fewer, more in pairwise(sorted(by_rows)):
        if by_rows[more] < by_rows[fewer]:
            message = f"{more} rows cannot take less than {fewer}, which take {by_rows[fewer]:g} s"
            raise Disagreement((more,), message)
    return by_rows


def _stated_seconds(given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        hint = number_hint(given) if isinstance(given, str) else ""
        raise ValueError(f"input should be a number of seconds, not {cut(given)}{hint}")
    if not 0 <= given < math.inf:
        raise ValueError(f"seconds should be 0 or more and finite, not {given}")
    return float(given)


class Emulate(Strict):
    """Seconds that each part shall take, so that one machine can act as several.

    Of a picture of the family's default size; steps and decoding of others take as many times as
    long as their latents have cells.

    step_s: of one sample, as of hardware that gains nothing by company: all take their steps one
        after another. Or by rows of a forward pass, in which a sample is one row, guided or not;
        then they share passes, as many as pay. A larger picture takes what so many more rows do.
    encode_s, decode_s: of one text and of one picture, which are made one after another.
    """

    step_s: Annotated[float | Curve, PlainValidator(_stated_step)]
    encode_s: Seconds = 0.0
    decode_s: Seconds = 0.0

    @property
    def curve(self) -> Curve:
        """Seconds of a step by rows."""
        return self.step_s if isinstance(self.step_s, Mapping) else {1: self.step_s}


class LinkConfig(Strict):
    """The way between two stages, the same in both directions.

    trace: of an emulated link, a file with the columns t_s and bytes_per_s, absolute, below the
        working directory or the repository: a rate holds until the next row's time, and after the
        last one the trace begins again. The way back begins in its middle, so that the two ways are
        not fast and slow together. bytes_per_s is then what the router takes it for at first.
    """

    between: Annotated[tuple[str, str], Field(strict=False)]
    bytes_per_s: Positive
    delay_s: Seconds = 0.0
    emulate: bool = False
    trace: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _follows_a_trace_if_emulated(self) -> LinkConfig:
        if self.trace is not None and not self.emulate:
            message = "only an emulated link can follow a trace; it needs `emulate: true`"
            raise Disagreement(("trace",), message)
        return self

    @property
    def link(self) -> Link:
        return Link(self.bytes_per_s, self.delay_s)


class EmulatePackets(Strict):
    """What packets are taken for on emulated links.

    packet_bytes: a family's folder, or its name: links are charged with what its packets would
        have, of a picture as much larger or smaller than its default size as the real one is.
        Latents of a small family are so small that no link matters to them.
    """

    packet_bytes: Annotated[str, Field(min_length=1)]


def emulated_links(links: Sequence[LinkConfig], source: str) -> dict[str, Link]:
    """Links that a stage has to act out when it sends, by target."""
    ends = [(link.between, link.link) for link in links if link.emulate]
    return {(b if a == source else a): link for (a, b), link in ends if source in (a, b)}


def followed(links: Sequence[LinkConfig], source: str) -> dict[str, tuple[str, bool]]:
    """Files that the rates of these links follow, by target, of those that follow any; and whether
    this is the way back, which is half a recording ahead of the way there."""
    there = {link.between[1]: (link, False) for link in links if link.between[0] == source}
    back = {link.between[0]: (link, True) for link in links if link.between[1] == source}
    return {
        to: (link.trace, is_back) for to, (link, is_back) in (there | back).items() if link.trace
    }
