"""A small Stable Diffusion 3."""

from __future__ import annotations

from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

from tests.pipeline_checkpoints.parts import autoencoder, clip_encoder, seeded, t5_encoder
from tests.pipeline_checkpoints.tokenizers import clip_tokenizer, t5_tokenizer


def write_stable_diffusion_3(folder: Path, t5: bool = True, shift: float = 3.0) -> Path:
    """Pictures of 32x32; the first layer has the second attention of 3.5 medium. Without `t5` a folder as it is published
    for small memories."""
    clip, words = clip_tokenizer(), t5_tokenizer()
    transformer = seeded(
        lambda: SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=4, joint_attention_dim=80, caption_projection_dim=32, pooled_projection_dim=64,
            pos_embed_max_size=24, qk_norm="rms_norm", dual_attention_layers=(0,),
        ),
        5,
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=autoencoder(),
        text_encoder=clip_encoder(len(clip), projected=True),
        tokenizer=clip,
        text_encoder_2=clip_encoder(len(clip), projected=True, seed=6),
        tokenizer_2=clip,
        text_encoder_3=t5_encoder(len(words), width=80) if t5 else None,
        tokenizer_3=words if t5 else None,
    )
    pipeline.save_pretrained(folder)
    return folder
