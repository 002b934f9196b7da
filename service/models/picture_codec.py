"""Between latents and pictures: an autoencoder, or nothing where the latent is the picture."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class PictureCodec(Protocol):
    """`factor`: pixels along a side of the picture that one of a latent's stands for. `channels`: of a latent."""

    factor: int
    channels: int

    def decode(self, latents: Tensor) -> Tensor:
        """Latents float32 [R, C, H, W] as pictures uint8 [R, H, W, 3]."""
        ...

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures uint8 [R, H, W, 3] as latents float32 [R, C, H, W]."""
        ...


class PixelCodec:
    """The latent is the picture, -1 to 1."""

    factor, channels = 1, 3

    def decode(self, latents: Tensor) -> Tensor:
        return as_bytes(latents)

    def embed(self, pictures: Tensor) -> Tensor:
        return as_floats(pictures)


class AutoencoderCodec:
    """diffusers' AutoencoderKL (arXiv 2112.10752), the mode of what it says, scaled as its config.json says."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        config = vae.config
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.channels = config.latent_channels
        self._scale, self._shift = config.scaling_factor, getattr(config, "shift_factor", None) or 0.0

    def decode(self, latents: Tensor) -> Tensor:
        scaled = (latents / self._scale + self._shift).to(self.vae.dtype)
        return as_bytes(self.vae.decode(scaled, return_dict=False)[0])

    def embed(self, pictures: Tensor) -> Tensor:
        latents = self.vae.encode(as_floats(pictures).to(self.vae.dtype)).latent_dist.mode()
        return (latents.float() - self._shift) * self._scale


def as_bytes(pictures: Tensor) -> Tensor:
    """[R, 3, H, W] from -1 to 1 as uint8 [R, H, W, 3]."""
    return ((pictures.float() * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def as_floats(pictures: Tensor) -> Tensor:
    """uint8 [R, H, W, 3] as float32 [R, 3, H, W] from -1 to 1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0
