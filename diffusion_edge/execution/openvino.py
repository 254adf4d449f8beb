"""OpenVINO on the CPU: denoiser, VAE and text encoders as graphs of fused float32 operations.

A graph has a fixed size and any number of rows; so there is one for every size that is prepared.
It is compiled for as many passes at the same time as there are lanes (`engine.lanes`), each with
the threads that torch has in the lane, so that stages on one machine do not fight over its cores.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from diffusion_edge.engine.lanes import use_threads
from diffusion_edge.engine.run import Predict
from diffusion_edge.execution.graphs import kept
from diffusion_edge.execution.remembered import cache_folder, key_of
from diffusion_edge.execution.way import Way, at_sizes, not_float32
from diffusion_edge.families.base import Conditioning, Loaded
from diffusion_edge.families.weights import human

EXTRA = "openvino"
"""Of the package, and of this project."""
Words = Mapping[str, Tensor]
TRACED = 3
"""Rows that the graph is traced with."""
TRIED = 5
"""Rows that a traced graph must also fit: one that took the first number for a constant would read
beyond its memory."""


def refuses(family: Loaded, sizes: Sequence[int], threads: int) -> str | None:
    if importlib.util.find_spec(EXTRA) is None:
        return f"not installed; `pip install diffusion-edge[{EXTRA}]` brings it"
    if family.device.type != "cpu":
        return f"it runs on the CPU; the model is on {family.device}"
    passes = 1 if threads == 1 else 2  # over all threads, and cut over them
    painters = [family.denoiser, family.vae]
    needed = passes * (len(sizes) * _bytes(painters) + _bytes(family.text_encoders))
    free = psutil.virtual_memory().available
    if needed > free:
        return f"its copies of the weights need {human(needed)}; main memory has {human(free)} free"
    return not_float32(family)


def prepare(family: Loaded, sizes: Sequence[int], threads: int) -> Predict:
    """Reads a graph for every size; the first time it is converted, which takes some seconds."""
    with torch.no_grad():
        texts = family.encode_text([""] * TRACED).tensors
    denoiser = _Forward(family, sorted(texts))

    def traced(size: int) -> _Traced:
        shape = family.latent_shape(size, size)
        rows = [torch.full((TRACED,), 500.0), torch.ones(TRACED), *_sorted(texts)]
        return _Traced(denoiser, [torch.randn(TRACED, *shape), *rows], [shape])

    graphs = _graphs("denoiser", [family.denoiser], map(traced, sizes), threads)

    def predict(
        latent: Tensor, timestep: Tensor, guidance: Tensor, conditioning: Conditioning
    ) -> Tensor:
        graph = graphs[tuple(latent.shape[1:])]
        (made,) = graph([latent, timestep, guidance, *_sorted(conditioning.tensors)])
        return made

    return at_sizes(family, sizes, predict)


def images(family: Loaded, sizes: Sequence[int], threads: int) -> Callable[[Tensor], Tensor]:
    """The VAE."""
    painter = _Images(family)

    def traced(size: int) -> _Traced:
        latent = torch.randn(TRACED, *family.latent_shape(size, size))
        return _Traced(painter, [latent], [(3, size, size)])

    graphs = _graphs("vae", [family.vae], map(traced, sizes), threads)

    def made(latent: Tensor) -> Tensor:
        graph = graphs.get(tuple(latent.shape[1:]))
        return family.images(latent) if graph is None else graph([latent])[0]

    return made


def encode(family: Loaded, sizes: Sequence[int], threads: int) -> Callable[[Words], Conditioning]:
    """The text encoders, and what else makes conditioning of their output."""
    with torch.no_grad():
        words = family.words([""] * TRACED)
        known = family.encode(words).tensors
    models = [*family.text_encoders, family.denoiser]
    encoder = _Encode(family, sorted(words), models)
    makes = [tuple(tensor.shape[1:]) for tensor in _sorted(known)]
    traced = _Traced(encoder, _sorted(words), makes)
    (graph,) = _graphs("texts", models, [traced], threads).values()

    def encoded(words: Words) -> Conditioning:
        return Conditioning(dict(zip(sorted(known), graph(_sorted(words)), strict=True)))

    return encoded


OPENVINO = Way(
    "openvino", "lossless", refuses, {"predict": prepare, "images": images, "encode": encode}
)


@cache
def _openvino() -> Any:
    """The package, without the one that tells its maker of every conversion."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # a refused import
    import openvino

    return openvino


# ---------------------------------------------------------------------------- a graph of a model


class _Forward(nn.Module):
    """`Family.predict` over a flat list of tensors."""

    def __init__(self, family: Loaded, names: Sequence[str]) -> None:
        super().__init__()
        self._predict: Callable[..., Tensor] = family.predict
        self._names = names
        self.denoiser = family.denoiser  # its weights are shared, not copied into the graph

    def forward(
        self, latent: Tensor, timestep: Tensor, guidance: Tensor, *conditioning: Tensor
    ) -> Tensor:
        named = Conditioning(dict(zip(self._names, conditioning, strict=True)))
        return self._predict(latent, timestep, guidance, named)


class _Images(nn.Module):
    """`Loaded.images`."""

    def __init__(self, family: Loaded) -> None:
        super().__init__()
        self._images: Callable[[Tensor], Tensor] = family.images
        self.vae = family.vae

    def forward(self, latent: Tensor) -> Tensor:
        return self._images(latent)


class _Encode(nn.Module):
    """`Loaded.encode` from and to a flat list of tensors."""

    def __init__(self, family: Loaded, names: Sequence[str], models: Sequence[nn.Module]) -> None:
        super().__init__()
        self._encode: Callable[[Words], Conditioning] = family.encode
        self._names = names
        self.models = nn.ModuleList(models)

    def forward(self, *words: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self._names, words, strict=True))
        return tuple(_sorted(self._encode(named).tensors))


@dataclass(frozen=True)
class _Traced:
    """What is traced, with which inputs of TRACED rows, and the shapes of a row of its outputs."""

    module: nn.Module
    inputs: Sequence[Tensor]
    makes: Sequence[tuple[int, ...]]


def _sorted(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    return [tensors[name] for name in sorted(tensors)]


def _bytes(models: Sequence[nn.Module]) -> int:
    return sum(weight.nbytes for model in models for weight in model.parameters())


def _graphs(
    part: str, models: Sequence[nn.Module], traced: Iterable[_Traced], threads: int
) -> dict[tuple[int, ...], _Graph]:
    """By the shape of a row of the first input. models: whose weights the graphs have."""
    key = key_of(models, torch.device("cpu"), [EXTRA], [part])
    before, found = torch.get_num_threads(), {}
    use_threads(1)  # a trace has many small parts, between which more threads would spin
    try:
        for each in traced:
            shape = tuple(each.inputs[0].shape[1:])
            folder = cache_folder() / EXTRA / f"{key}-{'x'.join(map(str, shape))}"
            graph = kept(folder, _openvino(), partial(_converted, each), _bytes(models))
            found[shape] = _Graph(graph, threads)
    finally:
        use_threads(before)
    return found


def _converted(traced: _Traced) -> Any:
    """A graph for any number of rows.

    Raises what the tracer and OpenVINO do of a model that they cannot convert.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about every branch of the model
        graph = _openvino().convert_model(
            traced.module,
            example_input=tuple(traced.inputs),
            input=[_openvino().PartialShape([-1, *each.shape[1:]]) for each in traced.inputs],
        )
    _check_rows(graph, [(TRIED, *shape) for shape in traced.makes])
    return graph


def _check_rows(graph: Any, expected: Sequence[tuple[int, ...]]) -> None:
    """RuntimeError for a graph that does not fit another number of rows."""
    tried = graph.clone()
    shapes = [[TRIED, *list(each.partial_shape)[1:]] for each in tried.inputs]
    tried.reshape(dict(enumerate(map(_openvino().PartialShape, shapes))))
    made = [each.partial_shape for each in tried.outputs]
    if made != [_openvino().PartialShape(list(shape)) for shape in expected]:
        raise RuntimeError(f"{TRIED} rows make {made}, not {expected}: a constant was traced")


class _Own(threading.local):
    """What one thread has of a graph: a request by how many passes run at the same time."""

    def __init__(self) -> None:
        self.requests: dict[int, Any] = {}


class _Graph:
    """A graph, compiled when it is first asked for by how many passes run at the same time."""

    def __init__(self, graph: Any, threads: int) -> None:
        self._graph, self._threads = graph, threads
        self._compiled: dict[int, Any] = {}
        self._compiling = threading.Lock()
        self._own = _Own()

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        passes = max(1, self._threads // torch.get_num_threads())
        made = self._request(passes).infer([t.numpy() for t in inputs], share_inputs=True)
        return [torch.from_numpy(made[k]) for k in range(len(made))]

    def _request(self, passes: int) -> Any:
        """Of the calling thread, which no other one uses."""
        requests = self._own.requests
        if passes not in requests:
            requests[passes] = self._compile(passes).create_infer_request()
        return requests[passes]

    def _compile(self, passes: int) -> Any:
        options = {
            "INFERENCE_PRECISION_HINT": "f32",  # some CPUs would take bfloat16
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": passes,
            "ENABLE_CPU_PINNING": False,  # several stages would sit on one core
        }
        with self._compiling:
            if passes not in self._compiled:
                core = _openvino().Core()
                self._compiled[passes] = core.compile_model(self._graph, "CPU", options)
            return self._compiled[passes]
