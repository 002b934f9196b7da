"""FLUX.2 klein, distilled to a few steps or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from msgspec.structs import replace
from torch import Tensor

from service.models.latent_network import Condition
from service.models.pipelines.index import Part
from service.models.pipelines.packing import grid, patchify, positions, sequence, unpatchify
from service.models.pipelines.pipeline import Components, Pipeline, around, stacked
from service.models.pipelines.text import chat_prompts, spared, token_ids
from service.procedures.noise import FlowTimes

WORDS = 512
LAYERS = (9, 18, 27)
"""Of the text encoder, whose states side by side are a word's."""
SIDE = 128
"""Latent pixels along a side of the picture that nobody gave a size."""


class Flux2Klein(Pipeline):
    """Qwen 3's states of the text as a chat; the latent is kept two by two pixels as one, each of its channels normed."""

    parts: ClassVar[Mapping[str, Part]] = {
        "transformer": Part("diffusers", ("Flux2Transformer2DModel",)),
        "vae": Part("diffusers", ("AutoencoderKLFlux2",)),
        "text_encoder": Part("transformers", ("Qwen3ForCausalLM",)),
        "tokenizer": Part("transformers", ("Qwen2Tokenizer", "Qwen2TokenizerFast"), bare=True),
    }

    def __init__(self, components: Components) -> None:
        spared((components.parts["text_encoder"], "lm_head"))
        super().__init__(components)
        depth = self.components.parts["text_encoder"].config.num_hidden_layers
        if depth < LAYERS[-1]:
            raise ValueError(f"the text encoder has {depth} layers, and the states of layer {LAYERS[-1]} are needed")
        self.time_evenly()
        if isinstance(self.noise.times, FlowTimes) and self.noise.times.resolution is not None:
            resolution = replace(self.noise.times.resolution, law="flux2")
            self.noise = replace(self.noise, times=replace(self.noise.times, resolution=resolution))
        distilled = bool(components.settings.get("is_distilled", False))
        self.steps, self.guidance = (4, 1.0) if distilled else (50, 4.0)
        self.sizes = around(SIDE * self.pixels, 2 * self.pixels)
        norm = self.vae.bn
        self._mean = norm.running_mean.view(1, -1, 1, 1).float()
        self._deviation = torch.sqrt(norm.running_var.view(1, -1, 1, 1).float() + self.vae.config.batch_norm_eps)

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        return self.transformer.config.in_channels, height // self.pixels // 2, width // self.pixels // 2

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        tokenizer, encoder = self.components.parts["tokenizer"], self.components.parts["text_encoder"]
        ids, mask = token_ids(tokenizer, chat_prompts(tokenizer, texts, thinking=False), WORDS, self.device)
        hidden = encoder.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
        states = torch.cat([hidden[layer] for layer in LAYERS], dim=-1)
        return [Condition({"states": row}) for row in states]

    def predict(self, x: Tensor, t: Tensor, guidance: Tensor, conditions: Sequence[Condition]) -> Tensor:
        states = stacked(conditions, "states")
        height, width = x.shape[2:]
        words = torch.zeros(states.shape[1], 4, device=x.device)
        words[:, 3] = torch.arange(states.shape[1], device=x.device)
        out = self.transformer(
            hidden_states=sequence(x),
            timestep=t / 1000,
            guidance=None,
            encoder_hidden_states=states,
            txt_ids=words,
            img_ids=positions(height, width, (1, 2), 4, x.device),
            return_dict=False,
        )[0]
        return grid(out, height, width)

    def from_latents(self, latents: Tensor) -> Tensor:
        normed = latents * self._deviation + self._mean
        return self.vae.decode(unpatchify(normed).to(self.vae.dtype), return_dict=False)[0]

    def to_latents(self, pictures: Tensor) -> Tensor:
        return (patchify(self.vae.encode(pictures).latent_dist.mode()).float() - self._mean) / self._deviation
