"""Small FLUX.1 and FLUX.2 klein."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
)

from tests.pipeline_checkpoints.parts import autoencoder, clip_encoder, qwen3, seeded, t5_encoder
from tests.pipeline_checkpoints.tokenizers import clip_tokenizer, qwen_tokenizer, t5_tokenizer

DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15, "max_image_seq_len": 4096}


def write_flux(folder: Path, dev: bool = True) -> Path:
    """dev, with a shift that depends on the resolution and the scale as an input, or schnell, with neither."""
    clip, words = clip_tokenizer(), t5_tokenizer()
    transformer = seeded(
        lambda: FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=dev, axes_dims_rope=(4, 4, 8),
        ),
        5,
        strength=2.0,
    )  # fmt: skip
    pipeline = FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC) if dev else FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=autoencoder(),
        text_encoder=clip_encoder(len(clip), projected=False),
        tokenizer=clip,
        text_encoder_2=t5_encoder(len(words)),
        tokenizer_2=words,
    )
    pipeline.save_pretrained(folder)
    return folder


def write_flux2_klein(folder: Path, distilled: bool = False) -> Path:
    tokenizer = qwen_tokenizer()
    transformer = seeded(
        lambda: Flux2Transformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=48, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        ),
        5,
        strength=2.0,
    )  # fmt: skip
    vae = seeded(
        lambda: AutoencoderKLFlux2(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1, norm_num_groups=4, latent_channels=4,
        ),
        4,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    vae.bn.running_mean.copy_(torch.randn(16, generator=generator))
    vae.bn.running_var.copy_(torch.rand(16, generator=generator) + 0.5)
    pipeline = Flux2KleinPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=vae,
        text_encoder=qwen3(len(tokenizer), layers=28, head=True),
        tokenizer=tokenizer,
        is_distilled=distilled,
    )
    pipeline.save_pretrained(folder)
    return folder
