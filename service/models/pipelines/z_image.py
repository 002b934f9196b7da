"""Z-Image and Z-Image-Turbo (arXiv 2511.22699)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from service.models.latent_network import Condition
from service.models.pipelines.index import Part
from service.models.pipelines.pipeline import Components, Pipeline, around
from service.models.pipelines.text import chat_prompts, spared, token_ids

WORDS = 512
SIDE = 128
"""Latent pixels along a side of the picture that nobody gave a size."""
TURBO_SHIFT = 3.0
BLOCK = 32
"""Texts and pictures are filled up to a multiple of so many tokens."""


class ZImage(Pipeline):
    """Qwen 3's states of the text as a chat, of any length. The network's time runs from noise at 0 to data at 1, and its
    velocity with it.

    Its pipeline adds guidance to the conditional output, so that its scale g is g + 1 here, as with all other models.
    """

    parts: ClassVar[Mapping[str, Part]] = {
        "transformer": Part("diffusers", ("ZImageTransformer2DModel",)),
        "vae": Part("diffusers", ("AutoencoderKL",)),
        "text_encoder": Part("transformers", ("Qwen3Model", "Qwen3ForCausalLM")),
        "tokenizer": Part("transformers", ("Qwen2Tokenizer", "Qwen2TokenizerFast"), bare=True),
    }

    def __init__(self, components: Components) -> None:
        spared((components.parts["text_encoder"], "lm_head"))
        super().__init__(components)
        self.time_evenly()
        # The distilled checkpoint says so nowhere else: its shift is 3, the base model's 6.
        turbo = components.scheduler.get("shift", 1.0) <= TURBO_SHIFT and not components.scheduler.get("use_dynamic_shifting")
        self.steps, self.guidance = (9, 1.0) if turbo else (50, 6.0)
        axes = self.transformer.config.axes_lens
        self.sizes = around(SIDE * self.pixels, 2 * self.pixels, min(axes[1:]) * 2 * self.pixels)

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        tokenizer, encoder = self.components.parts["tokenizer"], self.components.parts["text_encoder"]
        ids, mask = token_ids(tokenizer, chat_prompts(tokenizer, texts, thinking=True), WORDS, self.device)
        decoder = getattr(encoder, "model", encoder)
        states = decoder(input_ids=ids, attention_mask=mask.bool(), output_hidden_states=True, use_cache=False).hidden_states[-2]
        return [Condition({"states": row[real]}) for row, real in zip(states, mask.bool(), strict=True)]

    def lengths(self, conditions: Sequence[Condition]) -> Mapping[str, Sequence[int]]:
        words = (len(condition.tensors["states"]) for condition in conditions)
        return {"cap_embedder": [count + -count % BLOCK for count in words]}

    def predict(self, x: Tensor, t: Tensor, guidance: Tensor, conditions: Sequence[Condition]) -> Tensor:
        states = [condition.tensors["states"] for condition in conditions]
        out = self.transformer(list(x[:, :, None].unbind()), (1000 - t) / 1000, states, return_dict=False)[0]
        return -torch.stack(out)[:, :, 0]
