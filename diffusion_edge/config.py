"""The Serve config file, read strictly.

One file is at once what `serve deploy` takes and what this project reads: everything of ours
stands under `applications[0].args`. Ray accepts misspelt keys in silence, so the file is checked
here first; a `ConfigError` says the file, the line, the key and what would be right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from diffusion_edge.batching import Batching
from diffusion_edge.emulation import (
    MAX_ROWS,
    Emulate,
    EmulatePackets,
    LinkConfig,
    Positive,
    Seconds,
)
from diffusion_edge.errors import ConfigError, InvalidPlan
from diffusion_edge.plan import EXACT, TIERS, Plan, Tier
from diffusion_edge.request import AskedCodec
from diffusion_edge.strict import (
    Disagreement,
    Strict,
    dotted,
    line_of,
    nearest,
    read_yaml,
    validate,
)
from diffusion_edge.view import Link

Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Dtype = Literal["float32", "bfloat16", "float16"]
Execution = Literal["auto", "eager", "openvino", "compiled"]
"""How a model is run; see `diffusion_edge.execution`."""
Attention = Literal["auto", "sdpa", "cudnn", "fa3", "xformers"]
"""By what a denoiser attends; see `diffusion_edge.families.attention`."""
Precision = Literal["exact", "lossless"]
"""`exact`: float32, eagerly. `lossless`: within rounding of what that makes, for the dtype."""
Kernels = Annotated[
    Literal["auto", "off"],
    # YAML reads a bare off as false.
    BeforeValidator(lambda said: "off" if said is False else said),
]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]*$")]

# ---------------------------------------------------------------------------- records


class StageConfig(Strict):
    """One stage: its model and how it is held, its share of a node, and the node it may be on.

    dtype: None takes the card's. device: `auto` is a GPU where the stage has a share of one.
    offload: keep only the model that is at work on the GPU, the others in main memory.
    kernels: `off` leaves the modules of diffusers as they are; see docs/kernels.md.
    attention: by what the denoiser attends; `auto` measures what is the fastest.
    num_cpus, num_gpus: Ray's shares, also of less than one; Ray hides the GPUs from a stage that
        has none of them.
    capacity: images in the queue; what was begun on another stage waits beyond it.
    execution: how the model is run; `auto` measures which way is the fastest. precision: `exact`
        leaves float32, `eager` and `sdpa` only.
    batching: see `diffusion_edge.batching`. batch_rows: of a forward pass at most; without it the
        measured seconds decide.
    """

    tier: Tier
    model: str
    dtype: Dtype | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")] = "auto"
    offload: bool = False
    kernels: Kernels = "auto"
    attention: Attention = "auto"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    capacity: Annotated[int, Field(ge=1, le=100_000)] = 32
    num_cpus: Share = 0.1
    num_gpus: Share = 0.0
    resource: str | None = None
    label: str | None = None
    execution: Execution = "auto"
    precision: Precision = "lossless"
    batching: Batching = "in-flight"
    batch_rows: Annotated[int, Field(ge=1, le=MAX_ROWS)] | None = None
    emulate: Emulate | None = None

    @model_validator(mode="after")
    def _is_exact(self) -> StageConfig:
        if self.precision == "exact" and self.execution in ("openvino", "compiled"):
            message = f"{self.execution!r} rounds otherwise; precision: exact is for eager"
            raise Disagreement(("execution",), message)
        if self.precision == "exact" and self.attention not in ("auto", "sdpa"):
            message = f"{self.attention!r} rounds otherwise; precision: exact is for sdpa"
            raise Disagreement(("attention",), message)
        if self.precision == "exact" and self.dtype in ("bfloat16", "float16"):
            message = f"precision: exact is for float32, and dtype is {self.dtype}"
            raise Disagreement(("precision",), message)
        return self

    @model_validator(mode="after")
    def _has_a_gpu(self) -> StageConfig:
        if self.num_gpus > 1 and self.num_gpus % 1:
            message = f"{self.num_gpus:g} is neither a share of one GPU nor a number of them"
            raise Disagreement(("num_gpus",), message)
        if self.num_gpus:
            return self
        if self.device.startswith("cuda"):
            message = f"{self.device!r} needs a share of a GPU, such as num_gpus: 1.0"
            raise Disagreement(("device",), message)
        if self.offload:
            message = "offload needs a share of a GPU, such as num_gpus: 1.0"
            raise Disagreement(("offload",), message)
        return self


class Defaults(Strict):
    """What a request gets that does not say otherwise.

    codec_loss: the relative L2 error of the final latent that codec `auto` may cost a hop.
    """

    deadline_s: Positive = 30.0
    quality_floor: Annotated[float, Field(ge=0, le=1)] = 0.95
    codec: AskedCodec = EXACT
    codec_loss: Annotated[float, Field(ge=0, le=1)] = 0.01


class Watch(Strict):
    """Keeps one finished request in `every`, with its prompt and picture, for `diffusion-edge
    profile --watch`; the last `most` of them.

    folder: an absolute path, on the ingress's machine.
    """

    every: Annotated[int, Field(ge=1)]
    folder: Annotated[str, Field(pattern=r"^/")]
    most: Annotated[int, Field(ge=1)] = 1000


class Replan(Strict):
    """How often the plan of an image may be chosen again while it is on its way
    (`routing.replan`), at most; 0 never. look_s: between two looks at a request."""

    most: Annotated[int, Field(ge=0, le=100)] = 0
    look_s: Positive = 0.5


class Settings(Strict):
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
    replan: of policies that compare all plans.
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
    replan: Replan = Replan()
    measure_links: bool = True
    emulate: EmulatePackets | None = None

    @model_validator(mode="after")
    def _names_agree(self) -> Settings:
        if not self.stages:
            self._check_without_stages()
            return self
        self._check_links()
        if not self.links:
            self._check_without_links()
        for name, stage in self.stages.items():
            if stage.tier not in self.prices_per_s:
                message = f"no price for {stage.tier!r}, the tier of the stage {name!r}"
                raise Disagreement(("prices_per_s",), message)
        if self.plan is not None:
            self._check_plan(self.plan)
        return self

    def _check_without_stages(self) -> None:
        if self.links:
            message = "links join stages of this file, which has none; leave them out, too"
            raise Disagreement(("links",), message)
        if self.emulate:
            message = "without stages in this file nothing is emulated; leave it out, too"
            raise Disagreement(("emulate",), message)

    def _check_links(self) -> None:
        seen: set[frozenset[str]] = set()
        for index, link in enumerate(self.links):
            where = ("links", index, "between")
            for name in link.between:
                if name not in self.stages:
                    near = nearest(name, self.stages)
                    raise Disagreement(where, f"there is no stage {name!r}{near}")
            if self.emulate and not link.emulate:
                message = (
                    "only emulated links can be charged with other bytes than a packet's own, and "
                    f"links[{index}] is not; give it `emulate: true` or leave packet_bytes out"
                )
                raise Disagreement(("emulate", "packet_bytes"), message)
            pair = frozenset(link.between)
            if len(pair) == 1:
                raise Disagreement(where, "a link joins two different stages")
            if pair in seen:
                raise Disagreement(where, "these two stages have a link already")
            seen.add(pair)

    def _check_without_links(self) -> None:
        if self.emulate:
            message = "without links in this file none is emulated; state them or leave it out"
            raise Disagreement(("emulate",), message)
        if not self.measure_links:
            message = "without links in this file all are measured; state them or leave it out"
            raise Disagreement(("measure_links",), message)

    def _check_plan(self, text: str) -> None:
        try:
            plan = Plan.parse(text)
        except InvalidPlan as error:
            raise Disagreement(("plan",), error.message) from None
        for span in plan.spans:
            if span.stage not in self.stages:
                near = nearest(span.stage, self.stages)
                raise Disagreement(("plan",), f"there is no stage {span.stage!r}{near}")

    def link_map(self) -> dict[tuple[str, str], Link]:
        """Every link that is stated by (from, to), both directions."""
        pairs = {link.between: link.link for link in self.links}
        return pairs | {(b, a): link for (a, b), link in pairs.items()}

    def first_guesses(self) -> dict[tuple[str, str], Link | None]:
        """What is stated of every pair of stages that can hand off; None where nothing is."""
        return {**self.link_map()} if self.links else dict.fromkeys(permutations(self.stages, 2))

    @property
    def emulates(self) -> bool:
        """Whether any figure of this deployment is stated rather than measured."""
        links = any(link.emulate for link in self.links)
        return links or any(s.emulate for s in self.stages.values()) or self.emulate is not None


class HttpOptions(Strict):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    root_path: str = ""
    request_timeout_s: Positive | None = None
    keep_alive_timeout_s: Annotated[int, Field(ge=1)] = 5


class Application(Strict):
    name: Name = "diffusion-edge"
    route_prefix: Literal["/"] = "/"
    import_path: Literal["diffusion_edge.serve.app:build"]
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    args: Settings


class ServeConfig(Strict):
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
    return validate(ServeConfig, data, str(path), document)


def read_settings(args: Mapping[str, Any]) -> Settings:
    """The `args` of an application as Ray hands them to the builder."""
    return validate(Settings, dict(args), "args", None)


def disagreement(loc: Sequence[str | int], said: str, path: Path | None) -> ConfigError:
    """What is wrong at `loc` of an application's `args` beside something outside of the file.

    path: of the file, None for `args` that came without one.
    """
    if path is None:
        return ConfigError(f"args: {dotted(loc)}: {said}", file="args", key=dotted(loc))
    whole = ("applications", 0, "args", *loc)
    line = line_of(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), whole)
    where = f"{path}, line {line}: {dotted(whole)}"
    return ConfigError(f"{where}: {said}", file=str(path), key=dotted(whole))
