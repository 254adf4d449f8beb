"""How the parts of a family are looked at before one way or another is taken for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from diffusion_edge.engine.measure import probe
from diffusion_edge.engine.run import begin, step
from diffusion_edge.execution.check import drawn, final_error, image_error
from diffusion_edge.execution.way import Part
from diffusion_edge.families.base import Loaded

PROMPT = "a red circle"


@dataclass(frozen=True)
class Use:
    """What a family is to run for. sizes: edges of squares in pixels, the usual one first. threads:
    that it may use."""

    sizes: Sequence[int]
    solver: str
    threads: int = 1


@dataclass(frozen=True)
class Look:
    """called: for people. error: of what the second family makes against what the first one does,
    and the largest that is rounding. work: what is timed, for a family and a number of rows, of
    these numbers of rows."""

    called: str
    error: Callable[[Loaded, Loaded, Use], tuple[float, float]]
    work: Callable[[Loaded, Use, int], Callable[[], object]]
    rows: tuple[int, ...]


def _final_error(stock: Loaded, own: Loaded, use: Use) -> tuple[float, float]:
    return final_error(stock, own, use.sizes[0], use.solver)


def _image_error(stock: Loaded, own: Loaded, use: Use) -> tuple[float, float]:
    return image_error(stock, own, use.sizes[0])


def _steps(family: Loaded, use: Use, rows: int) -> Callable[[], object]:
    start = begin(family, probe(family, use.sizes[0], use.solver))
    return lambda: step(family, [start] * rows)


def _decoding(family: Loaded, use: Use, rows: int) -> Callable[[], object]:
    latent = drawn(family, use.sizes[0], rows)
    return lambda: family.decode(latent)


def _encoding(family: Loaded, use: Use, rows: int) -> Callable[[], object]:
    return lambda: family.encode_text([PROMPT] * rows)


LOOKS: Mapping[Part, Look] = {
    "predict": Look("the denoiser", _final_error, _steps, (2, 8)),
    "images": Look("the VAE", _image_error, _decoding, (1,)),
    "encode": Look("the text encoders", _final_error, _encoding, (2,)),
}
"""Of passes: one guided picture, and a few. A text that is encoded otherwise shows in latents."""
