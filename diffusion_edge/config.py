"""The Serve config file, read strictly.

One file is at once what `serve deploy` takes and what this project reads: everything of ours
stands under `applications[0].args`. Ray accepts misspelt keys in silence, so the file is checked
here first; a `ConfigError` says the file, the line, the key and what would be right.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise, permutations
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from diffusion_edge.batching import Batching
from diffusion_edge.curves import Curve
from diffusion_edge.errors import ConfigError, InvalidPlan
from diffusion_edge.plan import EXACT, TIERS, Plan, Tier
from diffusion_edge.request import AskedCodec
from diffusion_edge.view import Link

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Dtype = Literal["float32", "bfloat16", "float16"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]*$")]
_Model = TypeVar("_Model", bound=BaseModel)
MAX_ROWS = 1024
MAX_CHARACTERS = 1_000_000
MAX_NODES = 100_000
REPOSITORY = Path(__file__).resolve().parent.parent

# ---------------------------------------------------------------------------- records


class _DisagreementError(ValueError):
    """Two parts of the file that do not agree; `loc` leads to the one at fault."""

    def __init__(self, loc: Sequence[str | int], message: str) -> None:
        super().__init__(message)
        self.loc = tuple(loc)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _stated_step(given: object) -> float | Curve:
    """Seconds of one sample, or by rows; JSON, in which Ray sends a config, has these as text."""
    if not isinstance(given, Mapping):
        return _stated_seconds(given)
    by_rows: dict[int, float] = {}
    for key, value in given.items():
        rows = int(key) if isinstance(key, str) and key.isdecimal() else key
        if not isinstance(rows, int) or isinstance(rows, bool) or not 1 <= rows <= MAX_ROWS:
            message = f"rows are whole numbers from 1 to {MAX_ROWS}, not {_cut(key)}"
            raise _DisagreementError((key if isinstance(key, int) else str(key),), message)
        try:
            by_rows[rows] = _stated_seconds(value)
        except ValueError as error:
            raise _DisagreementError((rows,), str(error)) from None
    if 1 not in by_rows:
        raise ValueError(
            "the seconds of 1 row are missing, of a sample that steps alone; "
            "right is a number, or seconds by rows such as {1: 0.08, 4: 0.12}"
        )
    for fewer, more in pairwise(sorted(by_rows)):
        if by_rows[more] < by_rows[fewer]:
            message = f"{more} rows cannot take less than {fewer}, which take {by_rows[fewer]:g} s"
            raise _DisagreementError((more,), message)
    return by_rows


def _stated_seconds(given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        hint = _number_hint(given) if isinstance(given, str) else ""
        raise ValueError(f"input should be a number of seconds, not {_cut(given)}{hint}")
    if not 0 <= given < math.inf:
        raise ValueError(f"seconds should be 0 or more and finite, not {given}")
    return float(given)


class Emulate(_Strict):
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


class StageConfig(_Strict):
    """One stage: its model and how it is held, its share of a node, and the node it may be on.

    dtype: None takes the card's. device: `auto` is a GPU where the stage has a share of one.
    offload: keep only the model that is at work on the GPU, the others in main memory.
    num_cpus, num_gpus: Ray's shares, also of less than one; Ray hides the GPUs from a stage that
        has none of them.
    capacity: images in the queue; what was begun on another stage waits beyond it.
    batching: see `diffusion_edge.batching`. batch_rows: of a forward pass at most; without it the
        measured seconds decide.
    """

    tier: Tier
    model: str
    dtype: Dtype | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")] = "auto"
    offload: bool = False
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    capacity: Annotated[int, Field(ge=1, le=100_000)] = 32
    num_cpus: Share = 0.1
    num_gpus: Share = 0.0
    resource: str | None = None
    label: str | None = None
    batching: Batching = "in-flight"
    batch_rows: Annotated[int, Field(ge=1, le=MAX_ROWS)] | None = None
    emulate: Emulate | None = None

    @model_validator(mode="after")
    def _has_a_gpu(self) -> StageConfig:
        if self.num_gpus > 1 and self.num_gpus % 1:
            message = f"{self.num_gpus:g} is neither a share of one GPU nor a number of them"
            raise _DisagreementError(("num_gpus",), message)
        if self.num_gpus:
            return self
        if self.device.startswith("cuda"):
            message = f"{self.device!r} needs a share of a GPU, such as num_gpus: 1.0"
            raise _DisagreementError(("device",), message)
        if self.offload:
            message = "offload needs a share of a GPU, such as num_gpus: 1.0"
            raise _DisagreementError(("offload",), message)
        return self


class LinkConfig(_Strict):
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
            raise _DisagreementError(("trace",), message)
        return self

    @property
    def link(self) -> Link:
        return Link(self.bytes_per_s, self.delay_s)


class EmulatePackets(_Strict):
    """What packets are taken for on emulated links.

    packet_bytes: a family's folder, or its name: links are charged with what its packets would
        have, of a picture as much larger or smaller than its default size as the real one is.
        Latents of a small family are so small that no link matters to them.
    """

    packet_bytes: Annotated[str, Field(min_length=1)]


class Defaults(_Strict):
    """What a request gets that does not say otherwise.

    codec_loss: the relative L2 error of the final latent that codec `auto` may cost a hop.
    """

    deadline_s: Positive = 30.0
    quality_floor: Annotated[float, Field(ge=0, le=1)] = 0.95
    codec: AskedCodec = EXACT
    codec_loss: Annotated[float, Field(ge=0, le=1)] = 0.01


class Watch(_Strict):
    """Keeps one finished request in `every`, with its prompt and picture, for `diffusion-edge
    profile --watch`; the last `most` of them.

    folder: an absolute path, on the ingress's machine.
    """

    every: Annotated[int, Field(ge=1)]
    folder: Annotated[str, Field(pattern=r"^/")]
    most: Annotated[int, Field(ge=1)] = 1000


class Settings(_Strict):
    """The part of the file that is ours: `applications[0].args`.

    plan: what the policy `fixed` takes when a request names none.
    hop_timeout_s: a stage that has not accepted a packet by then is taken for lost.
    start_timeout_s: for loading and measuring the models of all stages.
    emulate: what is stated of the deployment as a whole; stages and links say their own.
    stages: left out, there is one for every model of the family; see `serve.machine`.
    links: what is stated of them is the first guess, until hops were measured. Left out, any two
        stages have one; else those that are named.
    measure_links: false takes links for what is stated, for comparisons.
    watch: left out, no request is kept.
    """

    family: Annotated[str, Field(min_length=1)]
    policy: str = "elastic"
    plan: str | None = None
    prices_per_s: dict[Tier, Seconds] = Field(default_factory=lambda: dict.fromkeys(TIERS, 1.0))
    defaults: Defaults = Defaults()
    placement_timeout_s: Annotated[float, Field(gt=0, le=60)] = 60.0
    drain_timeout_s: Positive = 30.0
    hop_timeout_s: Positive = 5.0
    start_timeout_s: Positive = 300.0
    stages: Annotated[dict[Name, StageConfig], Field(min_length=1)] = Field(default_factory=dict)
    links: list[LinkConfig] = Field(default_factory=list)
    watch: Watch | None = None
    measure_links: bool = True
    emulate: EmulatePackets | None = None

    @model_validator(mode="after")
    def _names_agree(self) -> Settings:
        if not self.stages:
            if self.links:
                message = "links join stages of this file, which has none; leave them out, too"
                raise _DisagreementError(("links",), message)
            if self.emulate:
                message = "without stages in this file nothing is emulated; leave it out, too"
                raise _DisagreementError(("emulate",), message)
            return self
        seen: set[frozenset[str]] = set()
        for index, link in enumerate(self.links):
            where = ("links", index, "between")
            for name in link.between:
                if name not in self.stages:
                    near = nearest(name, self.stages)
                    raise _DisagreementError(where, f"there is no stage {name!r}{near}")
            if self.emulate and not link.emulate:
                message = (
                    "only emulated links can be charged with other bytes than a packet's own, and "
                    f"links[{index}] is not; give it `emulate: true` or leave packet_bytes out"
                )
                raise _DisagreementError(("emulate", "packet_bytes"), message)
            pair = frozenset(link.between)
            if len(pair) == 1:
                raise _DisagreementError(where, "a link joins two different stages")
            if pair in seen:
                raise _DisagreementError(where, "these two stages have a link already")
            seen.add(pair)
        if not self.links:
            self._check_without_links()
        for name, stage in self.stages.items():
            if stage.tier not in self.prices_per_s:
                message = f"no price for {stage.tier!r}, the tier of the stage {name!r}"
                raise _DisagreementError(("prices_per_s",), message)
        if self.plan is not None:
            self._check_plan(self.plan)
        return self

    def _check_without_links(self) -> None:
        if self.emulate:
            message = "without links in this file none is emulated; state them or leave it out"
            raise _DisagreementError(("emulate",), message)
        if not self.measure_links:
            message = "without links in this file all are measured; state them or leave it out"
            raise _DisagreementError(("measure_links",), message)

    def _check_plan(self, text: str) -> None:
        try:
            plan = Plan.parse(text)
        except InvalidPlan as error:
            raise _DisagreementError(("plan",), error.message) from None
        for span in plan.spans:
            if span.stage not in self.stages:
                near = nearest(span.stage, self.stages)
                raise _DisagreementError(("plan",), f"there is no stage {span.stage!r}{near}")

    def link_map(self) -> dict[tuple[str, str], Link]:
        """Every link that is stated by (from, to), both directions."""
        pairs = {link.between: link.link for link in self.links}
        return pairs | {(b, a): link for (a, b), link in pairs.items()}

    def first_guesses(self) -> dict[tuple[str, str], Link | None]:
        """What is stated of every pair of stages that can hand off; None where nothing is."""
        return {**self.link_map()} if self.links else dict.fromkeys(permutations(self.stages, 2))

    def emulated_links(self, source: str) -> dict[str, Link]:
        """Links that a stage has to act out when it sends, by target."""
        ends = [(link.between, link.link) for link in self.links if link.emulate]
        return {(b if a == source else a): link for (a, b), link in ends if source in (a, b)}

    def traces(self, source: str) -> dict[str, tuple[str, bool]]:
        """Files that the rates of these links follow, by target, of those that follow any; and
        whether this is the way back, which is half a recording ahead of the way there."""
        there = {link.between[1]: (link, False) for link in self.links if link.between[0] == source}
        back = {link.between[0]: (link, True) for link in self.links if link.between[1] == source}
        return {
            to: (link.trace, is_back)
            for to, (link, is_back) in (there | back).items()
            if link.trace
        }

    @property
    def emulates(self) -> bool:
        """Whether any figure of this deployment is stated rather than measured."""
        links = any(link.emulate for link in self.links)
        return links or any(s.emulate for s in self.stages.values()) or self.emulate is not None


class HttpOptions(_Strict):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    root_path: str = ""
    request_timeout_s: Positive | None = None
    keep_alive_timeout_s: Annotated[int, Field(ge=1)] = 5


class Application(_Strict):
    name: Name = "diffusion-edge"
    route_prefix: Literal["/"] = "/"
    import_path: Literal["diffusion_edge.serve.app:build"]
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    args: Settings


class ServeConfig(_Strict):
    """The whole file."""

    proxy_location: Literal["HeadOnly", "EveryNode", "Disabled"] = "HeadOnly"
    http_options: HttpOptions = HttpOptions()
    logging_config: dict[str, Any] | None = None
    applications: Annotated[list[Application], Field(min_length=1, max_length=1)]

    @property
    def application(self) -> Application:
        return self.applications[0]

    @property
    def settings(self) -> Settings:
        return self.application.args


# ---------------------------------------------------------------------------- reading


def load_config(path: str | Path) -> ServeConfig:
    """Read and check a file; raises `ConfigError` with the first thing that is wrong."""
    path = Path(path)
    data, document = read_yaml(path)
    _refuse_repeated_keys(document, path)
    return _validate(ServeConfig, data, str(path), document)


def read_text(path: Path) -> str:
    """Raises ConfigError for what cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}", file=str(path)) from None


def read_yaml(path: Path) -> tuple[Any, yaml.Node | None]:
    """What a file says, and its nodes, which know their lines.

    Raises ConfigError for what is no YAML, and for more of it than anybody writes.
    """
    text = read_text(path)
    if len(text) > MAX_CHARACTERS:
        message = f"{path}: has {len(text)} characters; {MAX_CHARACTERS} are the limit"
        raise ConfigError(message, file=str(path))
    try:
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_unfolding(document, path)
        return yaml.safe_load(text), document
    except RecursionError:
        message = f"{path}: not YAML: it is nested too deeply"
        raise ConfigError(message, file=str(path)) from None
    except (yaml.YAMLError, ValueError) as error:  # the latter of dates and numbers that are none
        raise ConfigError(f"{path}: not YAML: {_one_line(error)}", file=str(path)) from None


def _refuse_unfolding(document: yaml.Node | None, path: Path) -> None:
    """An alias may stand within what it names, or a few lines of aliases for billions."""
    waiting, seen = [document], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > MAX_NODES:
            message = f"{path}: its aliases unfold to more than {MAX_NODES} values, or never end"
            raise ConfigError(message, file=str(path))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]


def read_settings(args: Mapping[str, Any]) -> Settings:
    """The `args` of an application as Ray hands them to the builder."""
    return _validate(Settings, dict(args), "args", None)


def disagreement(loc: Sequence[str | int], said: str, path: Path | None) -> ConfigError:
    """What is wrong at `loc` of an application's `args` beside something outside of the file.

    path: of the file, None for `args` that came without one.
    """
    if path is None:
        return ConfigError(f"args: {_dotted(loc)}: {said}", file="args", key=_dotted(loc))
    whole = ("applications", 0, "args", *loc)
    line = _line(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), whole)
    where = f"{path}, line {line}: {_dotted(whole)}"
    return ConfigError(f"{where}: {said}", file=str(path), key=_dotted(whole))


def family_folder(family: str) -> Path:
    """The folder of a family: absolute, below the working directory or the repository, or else
    its name below `stage_models` of either."""
    roots = dict.fromkeys((Path.cwd(), REPOSITORY))
    below = [root / "stage_models" for root in roots]
    for place in (root / family for root in (*roots, *below)):
        if (place / "family.yaml").is_file():
            return place.resolve()
    cards = (path.parent.name for folder in below for path in folder.glob("*/family.yaml"))
    known = sorted(set(cards))
    raise ConfigError(
        f"family {family!r}: there is no folder {family} with a family.yaml, here or in "
        f"{REPOSITORY}, and no such family in stage_models ({', '.join(known) or 'empty'})"
        f"{nearest(family, known)}",
        key="family",
    )


def trace_file(name: str) -> Path:
    """The file of a trace: absolute, or below the working directory or the repository. ConfigError
    if there is none."""
    for root in (Path.cwd(), REPOSITORY):
        if (root / name).is_file():
            return (root / name).resolve()
    raise ConfigError(f"there is no file {name}, here or in {REPOSITORY}", key="trace")


def _validate(model: type[_Model], data: object, file: str, document: yaml.Node | None) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as failure:
        # An unknown key explains a missing one, so it goes first.
        errors = sorted(failure.errors(), key=lambda error: error["type"] != "extra_forbidden")
        first = errors[0]
        loc = [part for part in first["loc"] if part != "[key]"]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, _DisagreementError):
            loc += cause.loc
        key = _dotted(loc)
        said = _explain(model, loc, first)
        line = _line(document, loc)
        place = f"{file}, line {line}" if line else file
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        where = f"{place}: {key}" if key else place
        raise ConfigError(f"{where}: {said}{more}", file=file, key=key) from None


def _explain(model: type[BaseModel], loc: Sequence[str | int], error: Any) -> str:
    """What is wrong at `loc` and what would be right."""
    if error["type"] == "extra_forbidden":
        fields = _fields_at(model, loc[:-1])
        near = nearest(str(loc[-1]), fields)
        return f"unknown key{near or '; known are ' + ', '.join(sorted(fields))}"
    if error["type"] == "missing":
        return "this key is missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    given = error["input"]
    if error["type"] == "literal_error" and isinstance(given, str):
        expected = error["ctx"]["expected"].replace(" or ", ",")
        allowed = [part.strip("' ") for part in expected.split(",")]
        return f"{given!r} is not one of {', '.join(allowed)}{nearest(given, allowed)}"
    hint = ""
    if error["type"] in ("float_type", "int_type") and isinstance(given, str):
        hint = _number_hint(given)
    return f"{error['msg'][:1].lower()}{error['msg'][1:]}, not {_cut(given)}{hint}"


def _number_hint(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return ""
    return f"; YAML reads this as text, write {number:.1f}"


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is not known; empty if none is like it."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _fields_at(model: Any, loc: Sequence[str | int]) -> list[str]:
    """The keys that are known where `loc` points, found by following the annotations."""
    for part in loc:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[str(part)].annotation
        elif typing.get_origin(model) in (list, dict):
            model = typing.get_args(model)[-1]
        while typing.get_origin(model) in (Union, types.UnionType, Annotated):
            model = typing.get_args(model)[0]
    known = isinstance(model, type) and issubclass(model, BaseModel)
    return list(model.model_fields) if known else []


def _dotted(loc: Sequence[str | int]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).lstrip(".")


def _line(node: yaml.Node | None, loc: Sequence[str | int]) -> int | None:
    """Line of the deepest node on the way to `loc`, counted from 1."""
    line = None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(part)]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _refuse_repeated_keys(node: yaml.Node | None, path: Path) -> None:
    """YAML keeps the last of two equal keys in silence; a second stage would vanish."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_repeated_keys(child, path)
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                message = f"{path}, line {line}: {key.value}: this key stands twice"
                raise ConfigError(message, file=str(path), key=str(key.value))
            seen.add(key.value)
            _refuse_repeated_keys(value, path)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _cut(value: object) -> str:
    """A value as it is shown in a message."""
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]} …"
