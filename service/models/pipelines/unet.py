"""What pipelines around a UNet have in common: Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from service.models.latent_network import Condition
from service.models.pipelines.pipeline import Components, Pipeline, around, stacked

UNSUPPORTED = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "encoder_hid_dim", "attention_type")
"""Settings by which a UNet asks for more than a text, with the values that ask for nothing more."""
PLAIN = (None, False, "default")
LCM_STEPS = 4


class UNetPipeline(Pipeline):
    """A UNet over the VAE's latent, its times those of training, 0 to 999.

    One that is distilled with the scale of guidance as an input says so by `time_cond_proj_dim` (latent consistency models,
    arXiv 2310.04378, section 4.1); its outputs are those of a consistency model.
    """

    denoiser = "unet"
    addition: str | None = None
    """What the UNet adds to its embedding of the time: None, or SDXL's "text_time"."""

    def __init__(self, components: Components, steps: int, guidance: float, distilled_guidance: float) -> None:
        """The pipeline's defaults. Raises ValueError for a UNet that takes more than these pipelines give it."""
        super().__init__(components)
        config = self.transformer.config
        if config.addition_embed_type != self.addition:
            raise ValueError(f"unet: addition_embed_type must be {self.addition!r}, not {config.addition_embed_type!r}")
        for key in UNSUPPORTED:
            if config.get(key) not in PLAIN:
                raise ValueError(f"unet: {key} {config[key]!r} is not supported")
        taken, channels = config.in_channels, self.vae.config.latent_channels
        if taken != channels:
            raise ValueError(f"unet: it takes {taken} channels, and the VAE's latents have {channels}")
        self.steps, self.guidance = steps, guidance
        if config.time_cond_proj_dim is not None:
            self.signature = (*self.signature, "consistency(x,t)")
            self.guidance_input = "always"
            self.steps, self.guidance = LCM_STEPS, distilled_guidance
        self.sizes = around(config.sample_size * self.pixels, self.pixels)

    def tokens(self, width: int, height: int) -> int:
        """There is no sequence: pixels of the latent."""
        return (width // self.pixels) * (height // self.pixels)

    def predict(self, x: Tensor, t: Tensor, guidance: Tensor, conditions: Sequence[Condition]) -> Tensor:
        width = self.transformer.config.time_cond_proj_dim
        return self.transformer(
            x,
            t,
            encoder_hidden_states=stacked(conditions, "states"),
            timestep_cond=None if width is None else scale_embedding(guidance, width).to(x.dtype),
            added_cond_kwargs=self.additions(x, conditions),
            return_dict=False,
        )[0]

    def additions(self, x: Tensor, conditions: Sequence[Condition]) -> dict[str, Tensor] | None:
        """What the UNet adds to its embedding of the time, by diffusers' names."""
        return None


def scale_embedding(guidance: Tensor, width: int) -> Tensor:
    """Scales [R] as sines and cosines [R, width] of 1000 (w - 1) at geometric frequencies, as the embedding of a time."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=guidance.device) * -(math.log(10000.0) / (half - 1))
    angles = (guidance.float() - 1)[:, None] * 1000.0 * exponents.exp()
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))
