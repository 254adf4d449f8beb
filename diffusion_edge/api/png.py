"""Pictures as PNG, JPEG or WebP, and what a PNG says about how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from unicodedata import category

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion_edge import __version__
from diffusion_edge.api.schema import OutputFormat
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest, Picture

# The names that other tools show for the same step rules.
SAMPLERS: Mapping[str, str] = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler-ancestral": "Euler a",
    "dpmpp-2m": "DPM++ 2M",
    "dpmpp-2m-karras": "DPM++ 2M Karras",
    "dpmpp-2m-sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "lms": "LMS",
    "pndm": "PLMS",
}


@dataclass(frozen=True)
class Made:
    """How one picture was made."""

    request: ImageRequest
    plan: Plan
    image: int = 0

    @property
    def seed(self) -> int:
        return self.request.seed + self.image


def encode(picture: Picture, output_format: OutputFormat, made: Made) -> bytes:
    """The file's bytes; WebP is lossless. Only a PNG has text chunks."""
    image = Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)
    out = BytesIO()
    if output_format == "png":
        image.save(out, "PNG", pnginfo=text_chunks(made))
    elif output_format == "jpeg":
        image.save(out, "JPEG", quality=95, subsampling=0)
    else:
        image.save(out, "WEBP", lossless=True)
    return out.getvalue()


def text_chunks(made: Made) -> PngInfo:
    info = PngInfo()
    info.add_text("parameters", parameters(made))
    info.add_text("diffusion_edge", json.dumps(provenance(made)))
    return info


def parameters(made: Made) -> str:
    """The text that other image tools write and read: prompt, negative prompt, settings.

    Those tools go by lines, so a prompt is one; its own is in the chunk `diffusion_edge`.
    """
    asked = made.request
    settings = {
        "Steps": asked.steps,
        "Sampler": SAMPLERS.get(asked.solver, asked.solver),
        "CFG scale": f"{asked.guidance:g}",
        "Seed": made.seed,
        "Size": f"{asked.width}x{asked.height}",
        "Model": asked.family,
        "Version": f"diffusion-edge {__version__}",
    }
    lines = [_one_line(asked.prompt)]
    if asked.negative_prompt:
        lines.append(f"Negative prompt: {_one_line(asked.negative_prompt)}")
    lines.append(", ".join(f"{key}: {value}" for key, value in settings.items()))
    return "\n".join(lines)


def _one_line(prompt: str) -> str:
    """A prompt with spaces for all that ends a line or a text; in quotes if it begins as a line
    that means something else."""
    line = "".join(" " if category(c) in ("Cc", "Zl", "Zp") else c for c in prompt).strip()
    meant = line.casefold().startswith(("steps:", "negative prompt:"))
    return json.dumps(line, ensure_ascii=False) if meant else line


def provenance(made: Made) -> dict[str, object]:
    """The JSON of the chunk `diffusion_edge`: the plan, and what is needed to run it again."""
    asked = made.request
    return {
        "version": __version__,
        "request_id": asked.request_id,
        "model": asked.family,
        "plan": str(made.plan),
        "reason": made.plan.reason,
        "spans": [
            {"stage": span.stage, "start": span.start, "stop": span.stop}
            for span in made.plan.spans
        ],
        "codecs": list(made.plan.codecs),
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "steps": asked.steps,
        "solver": asked.solver,
        "guidance_scale": asked.guidance,
        "size": f"{asked.width}x{asked.height}",
        "seed": made.seed,
    }
