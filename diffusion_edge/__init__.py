"""Stages of a diffusion model on device, edge and cloud, with an exact hand-off between them."""

__version__ = "0.1.0"
