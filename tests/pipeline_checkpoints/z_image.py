"""A small Z-Image."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

from tests.pipeline_checkpoints.parts import autoencoder, qwen3, seeded
from tests.pipeline_checkpoints.tokenizers import qwen_tokenizer


def write_z_image(folder: Path, shift: float = 6.0) -> Path:
    """`shift` 6 is that of the base model, 3 that of Turbo."""
    tokenizer = qwen_tokenizer()
    transformer = seeded(
        lambda: ZImageTransformer2DModel(
            in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
            axes_dims=[4, 6, 6], axes_lens=[1024, 64, 64],
        ),
        5,
    )  # fmt: skip
    with torch.no_grad():
        # Zero in a new network, and seen: they stand where a text or a picture does not fill up a block of tokens.
        transformer.x_pad_token.normal_(generator=torch.Generator().manual_seed(8))
        transformer.cap_pad_token.normal_(generator=torch.Generator().manual_seed(9))
    pipeline = ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=autoencoder(),
        text_encoder=qwen3(len(tokenizer), layers=3, head=False),
        tokenizer=tokenizer,
    )
    pipeline.save_pretrained(folder)
    return folder
