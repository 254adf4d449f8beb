"""`python -m diffusion_edge`: the command line."""

from diffusion_edge.commands.app import app

app()
