"""Stable Diffusion XL (arXiv 2307.01952), its Turbo (arXiv 2311.17042) and its latent consistency model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from service.models.latent_network import Condition
from service.models.pipelines.index import Part
from service.models.pipelines.pipeline import Components, stacked
from service.models.pipelines.text import clip_states
from service.models.pipelines.unet import UNetPipeline

BASE_SIZE = 128
"""Sides of the base model's latents; those of Turbo are half of it."""


class StableDiffusionXL(UNetPipeline):
    """Two CLIP encoders, whose states stand side by side, the second one's summary of the text, and the picture's size.

    Guidance that leads away from no text leads away from zeros where the folder says `force_zeros_for_empty_prompt`, as all
    published ones do.
    """

    parts: ClassVar[Mapping[str, Part]] = {
        "unet": Part("diffusers", ("UNet2DConditionModel",)),
        "vae": Part("diffusers", ("AutoencoderKL",)),
        "text_encoder": Part("transformers", ("CLIPTextModel",)),
        "text_encoder_2": Part("transformers", ("CLIPTextModelWithProjection",)),
        "tokenizer": Part("transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), bare=True),
        "tokenizer_2": Part("transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), bare=True),
    }
    addition = "text_time"

    def __init__(self, components: Components) -> None:
        # Turbo says nowhere that it is distilled, but its scheduler is made for one step from pure noise, and its pictures are
        # smaller. Networks that were trained to pure noise, which predict the velocity, begin there too, with many steps.
        scheduler, size = components.scheduler, components.parts["unet"].config.sample_size
        plain = scheduler.get("prediction_type", "epsilon") == "epsilon" and not scheduler.get("rescale_betas_zero_snr")
        turbo = scheduler.get("timestep_spacing") == "trailing" and plain and size < BASE_SIZE
        super().__init__(components, 1 if turbo else 50, 1.0 if turbo else 5.0, distilled_guidance=8.0)
        if getattr(self.vae.config, "latents_mean", None) is not None:
            raise ValueError("vae: latents_mean: latents that are normed by channel are not supported")
        self._zeros = bool(components.settings.get("force_zeros_for_empty_prompt", True))

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        parts = self.components.parts
        first, _ = clip_states(parts["tokenizer"], parts["text_encoder"], texts)
        second, pooled = clip_states(parts["tokenizer_2"], parts["text_encoder_2"], texts)
        states = torch.cat([first, second], dim=-1)
        if negative and self._zeros:
            nothing = [index for index, text in enumerate(texts) if not text]
            states[nothing], pooled[nothing] = 0, 0
        return [Condition({"states": row, "pooled": whole}) for row, whole in zip(states, pooled, strict=True)]

    def additions(self, x: Tensor, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        """The text's summary, and the sizes before and after cropping with the corner of the crop: nothing was cut off."""
        height, width = x.shape[2] * self.pixels, x.shape[3] * self.pixels
        return {"text_embeds": stacked(conditions, "pooled"), "time_ids": _sizes(height, width, x.device).repeat(len(x), 1)}


@lru_cache(maxsize=64)
def _sizes(height: int, width: int, device: torch.device) -> Tensor:
    """Brought to a device once: a forward on its way would wait for it."""
    with torch.inference_mode(False):
        return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=device)
