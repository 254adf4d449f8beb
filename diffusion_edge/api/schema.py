"""What the API takes: the fields of OpenAI's image API that make sense here, and ours.

Read strictly: an unknown field, a wrong type, a value out of range or a key that stands twice is an
InvalidRequest that names the field. `null` always means the default. Fields of OpenAI's API that
this server does not implement are accepted at the values that ask for nothing (NEUTRAL).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffusion_edge.errors import InvalidRequest, UnsupportedParameter
from diffusion_edge.plan import MAX_GUIDANCE
from diffusion_edge.request import AskedCodec, Late

MAX_PROMPT = 2000  # characters
MAX_IMAGES = 10
MAX_STEPS = 150
MAX_SEED = 2**53 - 1  # every JSON reader holds it exactly
MAX_DEADLINE_MS = 3_600_000

OutputFormat = Literal["png", "jpeg", "webp"]
_Model = TypeVar("_Model", bound=BaseModel)

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "quality": ("auto", "standard"),
    "style": ("vivid",),
    "background": ("auto", "opaque"),
    "moderation": ("auto",),
    "output_compression": (100,),
    "stream": (False,),
    "partial_images": (0,),
    "response_format": ("b64_json",),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class EdgeOptions(_Strict):
    """The object `diffusion_edge` of a request."""

    deadline_ms: Annotated[float, Field(gt=0, le=MAX_DEADLINE_MS)] | None = None
    quality_floor: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Relative to the cloud model alone."
    )
    late: Late | None = Field(
        default=None,
        description="What is to become of a request that cannot be in time: serve it late, which "
        "is the default, or refuse it at once.",
    )
    policy: str | None = None
    plan: str | None = Field(
        default=None,
        max_length=200,
        description="stage:steps in order, as in cloud:8,edge:6,device:6@1; the last of these has "
        "a guidance scale of its own.",
    )
    codec: AskedCodec | None = Field(
        default=None,
        description="How latents are carried between stages; auto goes by measured losses.",
    )


class ThrottleBody(_Strict):
    """The body of POST /v1/throttle: so many times an emulated link's rate, in both directions and
    until told otherwise; 1 is the link as configured."""

    between: tuple[str, str]
    factor: Annotated[float, Field(ge=0.001, le=1000)]
    restart: bool = Field(default=False, description="Let the link's trace begin again.")


class ImagesBody(_Strict):
    """The body of POST /v1/images/generations and of POST /v1/plan."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: str | None = Field(default=None, description="WIDTHxHEIGHT, or auto")
    output_format: OutputFormat | None = None
    user: str | None = None

    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    solver: str | None = None
    diffusion_edge: EdgeOptions | None = None

    response_format: Any = None
    quality: Any = None
    style: Any = None
    background: Any = None
    moderation: Any = None
    output_compression: Any = None
    stream: Any = None
    partial_images: Any = None


def parse(data: bytes) -> ImagesBody:
    """The body of a request. Raises InvalidRequest and UnsupportedParameter."""
    body = _read(ImagesBody, data, '{"prompt": "a red circle"}')
    if not body.prompt.strip():
        raise InvalidRequest("the prompt is empty; say what the image shows", param="prompt")
    _refuse_unsupported(body)
    return body


def parse_throttle(data: bytes) -> ThrottleBody:
    """Raises InvalidRequest."""
    return _read(ThrottleBody, data, '{"between": ["device", "cloud"], "factor": 0.1}')


def _read(model: type[_Model], data: bytes, example: str) -> _Model:
    _refuse_repeated_keys(data)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        # What is unknown comes first: a misspelt field also leaves another one missing.
        errors: Sequence[Mapping[str, Any]] = error.errors(include_url=False)
        first = min(errors, key=lambda e: e["type"] != "extra_forbidden")
        raise _told(model, first, example) from None


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all that it says."""


def _refuse_repeated_keys(data: bytes) -> None:
    """Of two equal keys readers take the first or the last; what a person meant nobody knows."""
    with suppress(ValueError, RecursionError):  # what is no JSON is told by the next reader
        # Values do not matter here, and Python reads no number of more than some thousand digits.
        said = json.loads(str(data, "utf-8"), object_pairs_hook=_Pairs, parse_int=len)
        twice = next(_repeated(said, ()), None)
        if twice is not None:
            key = _short(".".join(twice))
            raise InvalidRequest(f"the key {key!r} stands twice; leave one out", param=key)


def _repeated(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    seen: set[str] = set()
    named = value if isinstance(value, _Pairs) else _numbered(value)
    for key, inner in named:
        if key in seen:
            yield (*path, key)
        seen.add(key)
        yield from _repeated(inner, (*path, key))


def _numbered(value: Any) -> list[tuple[str, Any]]:
    return [(str(n), inner) for n, inner in enumerate(value)] if isinstance(value, list) else []


def _told(of: type[BaseModel], error: Mapping[str, Any], example: str) -> InvalidRequest:
    loc = [str(part) for part in error["loc"]]
    param = ".".join(loc) or None
    if error["type"] == "json_invalid":
        return InvalidRequest(
            f"the body is not JSON: {error['msg'].removeprefix('Invalid JSON: ')}"
        )
    if error["type"] == "extra_forbidden":
        model = EdgeOptions if len(loc) > 1 else of
        near = difflib.get_close_matches(loc[-1], list(model.model_fields), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return InvalidRequest(f"unknown field {_short(param)!r}{hint}", param=_short(param))
    if error["type"] == "missing":
        return InvalidRequest(f"{param!r} is missing", param=param)
    if param is None:
        return InvalidRequest(f"the body must be a JSON object such as {example}")
    message = error["msg"][:1].lower() + error["msg"][1:]
    return InvalidRequest(f"{param}: {message}", param=param)


def _refuse_unsupported(body: ImagesBody) -> None:
    for name, neutral in NEUTRAL.items():
        value = getattr(body, name)
        if value is None or any(type(value) is type(ok) and value == ok for ok in neutral):
            continue
        allowed = " or ".join(repr(ok) for ok in neutral)
        raise UnsupportedParameter(
            f"{name!r} is not supported beyond {allowed}; leave it out", param=name
        )


def _short(name: str | None) -> str:
    return (name or "")[:100]
