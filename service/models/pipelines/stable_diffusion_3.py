"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from service.models.latent_network import Condition
from service.models.pipelines.index import Part
from service.models.pipelines.pipeline import Components, Pipeline, around, stacked
from service.models.pipelines.text import clip_states, t5_states

WORDS = 256


class StableDiffusion3(Pipeline):
    """Two CLIP encoders, whose states stand side by side, and T5's behind them; without T5 its states are zeros."""

    parts: ClassVar[Mapping[str, Part]] = {
        "transformer": Part("diffusers", ("SD3Transformer2DModel",)),
        "vae": Part("diffusers", ("AutoencoderKL",)),
        "text_encoder": Part("transformers", ("CLIPTextModelWithProjection",)),
        "text_encoder_2": Part("transformers", ("CLIPTextModelWithProjection",)),
        "text_encoder_3": Part("transformers", ("T5EncoderModel",), optional=True),
        "tokenizer": Part("transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), bare=True),
        "tokenizer_2": Part("transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), bare=True),
        "tokenizer_3": Part("transformers", ("T5Tokenizer", "T5TokenizerFast"), optional=True, bare=True),
    }

    def __init__(self, components: Components) -> None:
        super().__init__(components)
        self.steps, self.guidance = 28, 7.0
        config = self.transformer.config
        longest = config.pos_embed_max_size * config.patch_size * self.pixels
        self.patch = config.patch_size
        self.sizes = around(config.sample_size * self.pixels, config.patch_size * self.pixels, longest)

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        parts = self.components.parts
        first, first_pooled = clip_states(parts["tokenizer"], parts["text_encoder"], texts)
        second, second_pooled = clip_states(parts["tokenizer_2"], parts["text_encoder_2"], texts)
        clip = torch.cat([first, second], dim=-1)
        if "text_encoder_3" in parts:
            t5 = t5_states(parts["tokenizer_3"], parts["text_encoder_3"], texts, WORDS)
        else:
            t5 = clip.new_zeros(len(texts), WORDS, self.transformer.config.joint_attention_dim)
        states = torch.cat([F.pad(clip, (0, t5.shape[-1] - clip.shape[-1])), t5], dim=1)
        pooled = torch.cat([first_pooled, second_pooled], dim=-1)
        return [Condition({"states": row, "pooled": whole}) for row, whole in zip(states, pooled, strict=True)]

    def predict(self, x: Tensor, t: Tensor, guidance: Tensor, conditions: Sequence[Condition]) -> Tensor:
        return self.transformer(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=stacked(conditions, "states"),
            pooled_projections=stacked(conditions, "pooled"),
            return_dict=False,
        )[0]
