"""Random PixArt-Σ pipelines of realistic proportions in diffusers' folder format: the same weights for all contestants.

PixArt-Σ because it is published for pictures of 256 pixels, whose latents of 32x32x4 are 256 tokens; because its noise is
that of the classic samplers, so that diffusers runs several of them on it; and because its text stands beside the picture's
tokens, not among them, so that what is measured is refinement.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel

from tests.pipeline_checkpoints.parts import seeded
from tests.pipeline_checkpoints.tokenizers import t5_tokenizer

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


@dataclass(frozen=True)
class Shape:
    """A transformer of `layers` layers of width 64 `heads` over latents of `side` x `side`, two by two of which are a token.
    T5 has half its layers, which is far less than T5-XXL has beside the published transformer, in favour of whoever encodes
    texts again and again."""

    side: int
    heads: int = 5
    layers: int = 8
    text_width: int = 256
    vae: tuple[int, ...] = (32, 64, 64, 64)

    @property
    def pixels(self) -> int:
        """Of a side of the picture."""
        return self.side * 2 ** (len(self.vae) - 1)


SHAPES = {"256px": Shape(32), "64px": Shape(8), "tiny": Shape(4, heads=1, layers=2, text_width=32, vae=(8, 8))}
"""That of a published size; the same network over 16 tokens, where a guided evaluation does not fill a processor; a toy."""


def write_pipeline(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """A pipeline in float32 whose weights depend on the seed alone. Its steps are spaced in the one way that all of diffusers'
    schedulers understand alike."""
    tokenizer = t5_tokenizer()
    width = 64 * shape.heads
    blocks = len(shape.vae)
    transformer = seeded(
        lambda: PixArtTransformer2DModel(
            sample_size=shape.side, patch_size=2, in_channels=4, out_channels=8, num_layers=shape.layers, attention_head_dim=64,
            num_attention_heads=shape.heads, cross_attention_dim=width, caption_channels=shape.text_width,
            use_additional_conditions=False,
        ),
        seed,
    )  # fmt: skip
    vae = seeded(
        lambda: AutoencoderKL(
            block_out_channels=shape.vae, down_block_types=(DOWN,) * blocks, up_block_types=(UP,) * blocks, layers_per_block=1,
            norm_num_groups=8, latent_channels=4, scaling_factor=0.13025,
        ),
        seed + 1,
    )  # fmt: skip
    text = T5Config(
        vocab_size=len(tokenizer), d_model=shape.text_width, d_kv=32, d_ff=4 * shape.text_width, num_layers=shape.layers // 2,
        num_heads=shape.text_width // 32, is_gated_act=True,
    )  # fmt: skip
    pipeline = PixArtSigmaPipeline(
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.0001, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing"
        ),
        vae=vae,
        text_encoder=seeded(lambda: T5EncoderModel(text), seed + 2),
        tokenizer=tokenizer,
    )
    pipeline.save_pretrained(folder)
    return folder
