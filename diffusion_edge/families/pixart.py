"""PixArt-Sigma: a DiT with cross-attention to one T5 text encoder."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import PixArtTransformer2DModel
from torch import Tensor
from transformers import T5EncoderModel

from diffusion_edge.families.base import Conditioning
from diffusion_edge.families.pipeline import PipelineFamily


class Architecture(PipelineFamily):
    MODELS = {"text_encoder": T5EncoderModel, "transformer": PixArtTransformer2DModel}

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """Hidden states (B, max_tokens, D) and their mask; case does not count."""
        words = [prompt.lower().strip() for prompt in prompts]
        tokens = self.tokenize("tokenizer", words, self.max_tokens)
        mask = tokens.attention_mask
        hidden = self.parts["text_encoder"](tokens.input_ids, attention_mask=mask)[0]
        unknown = dict.fromkeys(w for text in words for w in self._unknown(text))
        return Conditioning({"hidden": hidden.to(self.dtype), "mask": mask}, tuple(unknown))

    def _unknown(self, text: str) -> list[str]:
        """Words that a family with a vocabulary does not have."""
        if self.knows_all_words:
            return []
        tokenizer = self.parts["tokenizer"]
        pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        vocabulary = tokenizer.get_vocab()
        return [piece for piece, _ in pieces if piece not in vocabulary]

    def predict(
        self, latent: Tensor, timestep: Tensor, guidance: Tensor, conditioning: Conditioning
    ) -> Tensor:
        output: Tensor = self.denoiser(
            latent.to(self.dtype),
            encoder_hidden_states=conditioning.tensors["hidden"],
            encoder_attention_mask=conditioning.tensors["mask"],
            timestep=timestep,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        # Half of the channels may be a learned variance, which no solver here uses.
        return output[:, : self.channels].float()
