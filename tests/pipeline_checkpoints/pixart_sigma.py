"""A small PixArt-Σ."""

from __future__ import annotations

from pathlib import Path

from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

from tests.pipeline_checkpoints.parts import autoencoder, seeded, t5_encoder
from tests.pipeline_checkpoints.tokenizers import t5_tokenizer


def write_pixart_sigma(folder: Path, sizes: bool = False) -> Path:
    """Pictures of 32x32; the network says a variance too, as the published one does. `sizes`: it takes them, as PixArt-α."""
    tokenizer = t5_tokenizer()
    transformer = seeded(
        lambda: PixArtTransformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, out_channels=8, num_layers=2, attention_head_dim=8,
            num_attention_heads=6, cross_attention_dim=48, caption_channels=32, use_additional_conditions=sizes,
        ),
        5,
    )  # fmt: skip
    pipeline = PixArtSigmaPipeline(
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
        vae=autoencoder(shift_factor=None),
        text_encoder=t5_encoder(len(tokenizer)),
        tokenizer=tokenizer,
    )
    pipeline.save_pretrained(folder)
    return folder
