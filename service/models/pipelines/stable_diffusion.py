"""Stable Diffusion 1 and 2 (arXiv 2112.10752), and latent consistency models made of them (arXiv 2310.04378)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from service.models.latent_network import Condition
from service.models.pipelines.index import Part
from service.models.pipelines.pipeline import Components
from service.models.pipelines.text import token_ids
from service.models.pipelines.unet import UNetPipeline


class StableDiffusion(UNetPipeline):
    """CLIP's last hidden states of the text, padded to its full length. A folder's safety checker is not loaded."""

    parts: ClassVar[Mapping[str, Part]] = {
        "unet": Part("diffusers", ("UNet2DConditionModel",)),
        "vae": Part("diffusers", ("AutoencoderKL",)),
        "text_encoder": Part("transformers", ("CLIPTextModel",)),
        "tokenizer": Part("transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), bare=True),
    }

    def __init__(self, components: Components) -> None:
        super().__init__(components, steps=50, guidance=7.5, distilled_guidance=8.5)

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        tokenizer, encoder = self.components.parts["tokenizer"], self.components.parts["text_encoder"]
        ids, _ = token_ids(tokenizer, texts, tokenizer.model_max_length, self.device)
        return [Condition({"states": row}) for row in encoder(ids)[0]]
