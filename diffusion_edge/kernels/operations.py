"""All operations, in the order of a request."""

from __future__ import annotations

from diffusion_edge.kernels import (
    gated_norm,
    geglu,
    group_norm_silu,
    guided_step,
    qk_norm_rotary,
    quantise,
    to_uint8,
)

OPERATIONS = (
    group_norm_silu.OPERATION,
    gated_norm.OPERATION,
    qk_norm_rotary.OPERATION,
    geglu.OPERATION,
    guided_step.OPERATION,
    quantise.QUANTISE,
    quantise.DEQUANTISE,
    to_uint8.OPERATION,
)
