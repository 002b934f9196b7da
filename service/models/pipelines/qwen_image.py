"""Qwen-Image (arXiv 2508.02324)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from service.models.latent_network import Condition
from service.models.pipelines.index import Part
from service.models.pipelines.packing import grid, patchify, sequence, unpatchify
from service.models.pipelines.pipeline import Components, Pipeline, around, padded
from service.models.pipelines.text import spared

WORDS = 1024
SIDE = 128
"""Latent pixels along a side of the picture that nobody gave a size."""
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""What the network was trained with, and thus the checkpoint's own words."""
INSTRUCTION = 34
"""Tokens of the template before the text, whose states are not used."""


class QwenImage(Pipeline):
    """Qwen 2.5 VL's states of the text, of any length; guidance keeps the length of every token's output."""

    parts: ClassVar[Mapping[str, Part]] = {
        "transformer": Part("diffusers", ("QwenImageTransformer2DModel",)),
        "vae": Part("diffusers", ("AutoencoderKLQwenImage",)),
        "text_encoder": Part("transformers", ("Qwen2_5_VLForConditionalGeneration",)),
        "tokenizer": Part("transformers", ("Qwen2Tokenizer", "Qwen2TokenizerFast"), bare=True),
    }

    own_guidance = True

    def __init__(self, components: Components) -> None:
        encoder = components.parts["text_encoder"]
        spared((encoder, "lm_head"), (encoder.model, "visual"))
        super().__init__(components)
        if self.transformer.config.guidance_embeds or self.transformer.config.zero_cond_t:
            raise ValueError("variants that take a scale of guidance or a clean picture are not supported")
        self.time_evenly()
        self.steps, self.guidance = 50, 4.0
        self.sizes = around(SIDE * self.pixels, 2 * self.pixels)
        config = self.vae.config
        self._mean = torch.tensor(config.latents_mean, device=self.device).view(1, -1, 1, 1)
        self._deviation = torch.tensor(config.latents_std, device=self.device).view(1, -1, 1, 1)

    @property
    def pixels(self) -> int:
        return 2 ** len(self.vae.config.temperal_downsample)

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        return self.transformer.config.in_channels // 4, height // self.pixels, width // self.pixels

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        tokenizer, encoder = self.components.parts["tokenizer"], self.components.parts["text_encoder"]
        prompts = [TEMPLATE.format(text) for text in texts]
        tokens = tokenizer(prompts, max_length=WORDS + INSTRUCTION, padding=True, truncation=True, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        states = encoder.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return [Condition({"states": row[real][INSTRUCTION:]}) for row, real in zip(states, mask.bool(), strict=True)]

    def predict(self, x: Tensor, t: Tensor, guidance: Tensor, conditions: Sequence[Condition]) -> Tensor:
        states, real = padded(conditions, "states")
        alike = len({len(condition.tensors["states"]) for condition in conditions}) == 1
        height, width = x.shape[2] // 2, x.shape[3] // 2
        out = self.transformer(
            hidden_states=sequence(patchify(x)),
            timestep=t / 1000,
            encoder_hidden_states=states,
            encoder_hidden_states_mask=None if alike else real,
            img_shapes=[[(1, height, width)]] * len(x),
            return_dict=False,
        )[0]
        return unpatchify(grid(out, height, width))

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
        """Every token's guided output is brought back to the length of its conditional one."""
        guided = patchify(super().guide(conditional, unconditional, scale))
        length = patchify(conditional).norm(dim=1, keepdim=True)
        return unpatchify(guided * (length / guided.norm(dim=1, keepdim=True).clamp_min(torch.finfo(guided.dtype).tiny)))

    def from_latents(self, latents: Tensor) -> Tensor:
        video = (latents * self._deviation + self._mean)[:, :, None].to(self.vae.dtype)
        return self.vae.decode(video, return_dict=False)[0][:, :, 0]

    def to_latents(self, pictures: Tensor) -> Tensor:
        return (self.vae.encode(pictures[:, :, None]).latent_dist.mode()[:, :, 0].float() - self._mean) / self._deviation
