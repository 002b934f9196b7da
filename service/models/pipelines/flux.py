"""FLUX.1: dev, whose network takes the scale of guidance, and schnell, which needs none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from service.models.latent_network import Condition
from service.models.pipelines.index import Part
from service.models.pipelines.packing import grid, patchify, positions, sequence, unpatchify
from service.models.pipelines.pipeline import Components, Pipeline, around, stacked
from service.models.pipelines.text import clip_pooled, t5_states

WORDS = 512
SIDE = 128
"""Latent pixels along a side of the picture that nobody gave a size."""


class Flux(Pipeline):
    """CLIP's summary of the text, and T5's states; the picture's tokens know their row and column, words know nothing."""

    parts: ClassVar[Mapping[str, Part]] = {
        "transformer": Part("diffusers", ("FluxTransformer2DModel",)),
        "vae": Part("diffusers", ("AutoencoderKL",)),
        "text_encoder": Part("transformers", ("CLIPTextModel",)),
        "text_encoder_2": Part("transformers", ("T5EncoderModel",)),
        "tokenizer": Part("transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), bare=True),
        "tokenizer_2": Part("transformers", ("T5Tokenizer", "T5TokenizerFast"), bare=True),
    }

    def __init__(self, components: Components) -> None:
        super().__init__(components)
        self.time_evenly()
        self.takes_scale = bool(self.transformer.config.guidance_embeds)
        self.guidance_input = "always" if self.takes_scale else "no"
        # schnell is distilled to four steps without guidance; of its config only this differs from dev's.
        self.steps, self.guidance = (28, 3.5) if self.takes_scale else (4, 1.0)
        self.sizes = around(SIDE * self.pixels, 2 * self.pixels)

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        return self.transformer.config.in_channels // 4, height // self.pixels, width // self.pixels

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        parts = self.components.parts
        pooled = clip_pooled(parts["tokenizer"], parts["text_encoder"], texts)
        states = t5_states(parts["tokenizer_2"], parts["text_encoder_2"], texts, WORDS)
        return [Condition({"states": row, "pooled": whole}) for row, whole in zip(states, pooled, strict=True)]

    def predict(self, x: Tensor, t: Tensor, guidance: Tensor, conditions: Sequence[Condition]) -> Tensor:
        states = stacked(conditions, "states")
        height, width = x.shape[2] // 2, x.shape[3] // 2
        out = self.transformer(
            hidden_states=sequence(patchify(x)),
            timestep=t / 1000,
            guidance=guidance if self.takes_scale else None,
            pooled_projections=stacked(conditions, "pooled"),
            encoder_hidden_states=states,
            txt_ids=torch.zeros(states.shape[1], 3, device=x.device),
            img_ids=positions(height, width, (1, 2), 3, x.device),
            return_dict=False,
        )[0]
        return unpatchify(grid(out, height, width))
