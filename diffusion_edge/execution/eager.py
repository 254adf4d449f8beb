"""As the model's library has it, one operation after another; other ways are held against it."""

from __future__ import annotations

from diffusion_edge.execution.way import Way

EAGER = Way("eager", "lossless", refuses=lambda family, sizes, threads: None, prepare={})
