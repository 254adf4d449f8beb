"""The kernels compiled ahead of time, without a GPU or a driver: what they need of one."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from diffusion_edge.kernels.gpu import (
    gated_norm,
    geglu,
    group_norm_silu,
    guided_step,
    qk_norm_rotary,
    quantise,
    to_uint8,
)
from diffusion_edge.kernels.quantise import LEVELS

WARP = 32
CAPABILITIES = (80, 90)


@dataclass(frozen=True)
class Spec:
    """One kernel as it is launched on large tensors.

    pointers: their types by name. constants: by name. odd: numbers that need not be divisible by
    16. exact: products and sums stay apart.
    """

    name: str
    kernel: Any
    pointers: Mapping[str, str]
    constants: Mapping[str, Any]
    odd: tuple[str, ...] = ()
    warps: int = 4
    exact: bool = False


@dataclass(frozen=True)
class Compiled:
    """registers: of a thread. spilled, shared: bytes of a thread, of a program. wide_loads: of 16
    bytes; fused: multiply-adds, which an exact kernel has none of."""

    name: str
    capability: int
    registers: int
    spilled: int
    shared: int
    wide_loads: int
    fused: int


def _floats(names: str, kind: str = "*fp32") -> dict[str, str]:
    return dict.fromkeys(names.split(), kind)


BF16 = "*bf16"
_TILES = {"nchw": group_norm_silu.NCHW_TILE, "nhwc": group_norm_silu.NHWC_TILE}
_ONES = {"nchw": "x_pixel", "nhwc": "x_channel"}


def _tiled(layout: str) -> dict[str, int]:
    channels, pixels = _TILES[layout]
    return {"TILE_C": channels, "TILE_P": pixels, _ONES[layout]: 1}


SPECS = (
    Spec(
        "guided_step, 3 history tensors",
        guided_step.kernel,
        _floats("out x weights predicted guidance noise h1 h2 h3"),
        {"H": 3, "DOUBLED": True, "NOISY": True, "BLOCK": guided_step.BLOCK},
        odd=("batch",),
        exact=True,
    ),
    *(
        Spec(
            f"group_norm_silu, moments, {layout}",
            group_norm_silu.moments,
            {"x": BF16} | _floats("means squares"),
            _tiled(layout),
            odd=("parts",),
        )
        for layout in _TILES
    ),
    Spec(
        "group_norm_silu, combine",
        group_norm_silu.combine,
        {"weight": BF16} | _floats("means squares centres scales"),
        {"TILE_C": 4, "TILE_K": group_norm_silu.MOST_PARTS},
        odd=("size", "parts"),
    ),
    *(
        Spec(
            f"group_norm_silu, finish, {layout}",
            group_norm_silu.finish,
            _floats("out x bias", BF16) | _floats("centres scales"),
            _tiled(layout),
        )
        for layout in _TILES
    ),
    Spec(
        "gated_norm, 3,072 wide",
        gated_norm.kernel,
        _floats("residual normed x y gate scale shift", BF16),
        {"ADDS": True, "GATED": True, "RMS": False, "BLOCK": 4096},
        odd=("tokens",),
        warps=8,
    ),
    Spec(
        "qk_norm_rotary, heads of 128",
        qk_norm_rotary.kernel,
        _floats("query_out key_out query key query_weight key_weight", BF16) | _floats("cos sin"),
        {"ROTARY": True, "ROWS": qk_norm_rotary.VALUES // 128, "BLOCK": 128},
        odd=("tokens", "heads"),
    ),
    Spec("geglu", geglu.kernel, _floats("out x", BF16), {"BLOCK": geglu.BLOCK}),
    Spec(
        "quantise",
        quantise.quantising,
        {"levels": "*i8"} | _floats("scales x"),
        {"MOST": LEVELS, "ROUND": quantise.ROUND, "BLOCK": quantise.BLOCK},
        exact=True,
    ),
    Spec(
        "dequantise",
        quantise.dequantising,
        {"levels": "*i8"} | _floats("out scales"),
        {"BLOCK": quantise.BLOCK},
        exact=True,
    ),
    Spec(
        "to_uint8, nhwc",
        to_uint8.kernel,
        {"out": "*u8", "images": BF16},
        {"image_channel": 1, "ROUND": quantise.ROUND, "BLOCK": to_uint8.BLOCK},
        odd=("channels", "image_pixel"),
        exact=True,
    ),
)


def compiled(spec: Spec, capability: int) -> Compiled:
    """capability: such as 90 for sm_90."""
    names = spec.kernel.arg_names
    kinds = dict.fromkeys(spec.constants, "constexpr") | dict(spec.pointers) | {"eps": "fp32"}
    aligned = [n for n in names if n not in spec.constants and n not in (*spec.odd, "eps")]
    source = ASTSource(
        fn=spec.kernel,
        signature={name: kinds.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in spec.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": spec.warps, "enable_fp_fusion": not spec.exact}
    made = triton.compile(source, target=GPUTarget("cuda", capability, WARP), options=options)
    registers, spilled = _resources(made.asm["cubin"])
    ptx = made.asm["ptx"]
    return Compiled(
        spec.name,
        capability,
        registers,
        spilled,
        int(made.metadata.shared),
        len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)),
        len(re.findall(r"\bfma\.", ptx)),
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and local memory of a thread, as `cuobjdump` tells them."""
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def table() -> list[Compiled]:
    return [compiled(spec, capability) for spec in SPECS for capability in CAPABILITIES]
