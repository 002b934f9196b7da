"""Random PixArt-Σ pipelines of realistic proportions in diffusers' folder format: the same weights for all contestants.

PixArt-Σ because it is published for pictures of 256 pixels, whose latents of 32x32x4 are 256 tokens; because its noise is
that of the classic samplers, so that diffusers runs several of them on it; and because its text stands beside the picture's
tokens, not among them, so that what is measured is refinement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel

from tests.benchmarks.picture_jobs import Machine
from tests.pipeline_checkpoints.parts import seeded
from tests.pipeline_checkpoints.tokenizers import t5_tokenizer

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


@dataclass(frozen=True)
class Shape:
    """A transformer of `layers` layers of width `head_dim` `heads` over latents of `side` x `side`, two by two of which are a
    token. T5 has half its layers unless told otherwise, which is far less than T5-XXL has beside the published transformer, in
    favour of whoever encodes texts again and again. Of the VAE: its widths, layers a block and groups of its norms."""

    side: int
    heads: int = 5
    layers: int = 8
    text_width: int = 256
    vae: tuple[int, ...] = (32, 64, 64, 64)
    head_dim: int = 64
    text_layers: int | None = None
    vae_layers: int = 1
    vae_groups: int = 8

    @property
    def pixels(self) -> int:
        """Of a side of the picture."""
        return self.side * 2 ** (len(self.vae) - 1)


SHAPES = {
    "256px": Shape(32),
    "64px": Shape(8),
    "tiny": Shape(4, heads=1, layers=2, text_width=32, vae=(8, 8)),
    "XL": Shape(32, 16, 28, 1024, (128, 256, 512, 512), head_dim=72, text_layers=4, vae_layers=2, vae_groups=32),
}
"""That of a published size; the same network over 16 tokens, where a guided evaluation does not fill a processor; a toy; the
published transformer (PixArt-Σ XL/2, but for the width of its texts, 4096) and VAE, for a GPU."""


def write_pipeline(folder: Path, shape: Shape, machine: Machine, seed: int = 0) -> Path:
    """A pipeline whose weights depend on the seed and the kind of device alone: they are drawn there in float32, and kept in the
    machine's precision. Its steps are spaced in the one way that all of diffusers' schedulers understand alike."""

    def drawn(make: Callable[[], Any], seed: int) -> Any:
        def there() -> Any:
            with machine.device:
                return make()

        return seeded(there, seed).to(machine.dtype)

    tokenizer = t5_tokenizer()
    width = shape.head_dim * shape.heads
    blocks = len(shape.vae)
    transformer = drawn(
        lambda: PixArtTransformer2DModel(
            sample_size=shape.side, patch_size=2, in_channels=4, out_channels=8, num_layers=shape.layers,
            attention_head_dim=shape.head_dim, num_attention_heads=shape.heads, cross_attention_dim=width,
            caption_channels=shape.text_width, use_additional_conditions=False,
        ),
        seed,
    )  # fmt: skip
    vae = drawn(
        lambda: AutoencoderKL(
            block_out_channels=shape.vae, down_block_types=(DOWN,) * blocks, up_block_types=(UP,) * blocks,
            layers_per_block=shape.vae_layers, norm_num_groups=shape.vae_groups, latent_channels=4, scaling_factor=0.13025,
        ),
        seed + 1,
    )  # fmt: skip
    text = T5Config(
        vocab_size=len(tokenizer), d_model=shape.text_width, d_kv=32, d_ff=4 * shape.text_width,
        num_layers=shape.text_layers or shape.layers // 2, num_heads=shape.text_width // 32, is_gated_act=True,
    )  # fmt: skip
    pipeline = PixArtSigmaPipeline(
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.0001, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing"
        ),
        vae=vae,
        text_encoder=drawn(lambda: T5EncoderModel(text), seed + 2),
        tokenizer=tokenizer,
    )
    pipeline.save_pretrained(folder)
    return folder
