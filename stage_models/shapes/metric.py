"""The metric of `shapes` for `diffusion-edge profile`: attribute accuracy by the verifier."""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.request import Picture
from stage_models.shapes import gallery, scenes
from stage_models.shapes.verify import verify


class AttributeAccuracy:
    """See `diffusion_edge.profile.metric` for the contract."""

    def prompts(self, count: int, seed: int) -> Sequence[str]:
        """Held-out captions, taking turns in one and two things."""
        return [str(caption) for caption in gallery.captions(count, seed, (1, 2))]

    def score(self, prompt: str, picture: Picture, reference: Picture) -> float:
        """Needs no reference. Raises InvalidRequest for a prompt that is no caption."""
        caption = scenes.parse(prompt)
        if caption is None:
            raise InvalidRequest(f"{prompt!r} is not a sentence that the verifier can check")
        return verify(caption, gallery.image(picture)).accuracy


attribute_accuracy = AttributeAccuracy()
