"""Small Stable Diffusion 1 and XL, with what XL was made into: Turbo and a latent consistency model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from tests.pipeline_checkpoints.parts import autoencoder, clip_encoder, seeded
from tests.pipeline_checkpoints.tokenizers import clip_tokenizer

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "base": lambda: EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
    "turbo": lambda: EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing", steps_offset=1),
    "lcm": lambda: LCMScheduler(**BETAS),
}
"""As the published folders have them."""


def unet(in_channels: int = 4, **settings: Any) -> UNet2DConditionModel:
    return seeded(
        lambda: UNet2DConditionModel(
            block_out_channels=(8, 16), layers_per_block=2, sample_size=16, norm_num_groups=4,
            in_channels=in_channels, out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            **settings,
        ),
        5,
    )  # fmt: skip


def write_stable_diffusion_xl(folder: Path, variant: str = "base") -> Path:
    """Pictures of 32x32. `variant`: base, turbo or lcm, whose UNet takes the scale of guidance."""
    tokenizer = clip_tokenizer()
    pipeline = StableDiffusionXLPipeline(
        unet=unet(
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 24,
            cross_attention_dim=32 + 24, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2),
            use_linear_projection=True, time_cond_proj_dim=12 if variant == "lcm" else None,
        ),
        scheduler=SCHEDULERS[variant](),
        vae=autoencoder(shift_factor=None),
        text_encoder=clip_encoder(len(tokenizer), projected=False),
        tokenizer=tokenizer,
        text_encoder_2=clip_encoder(len(tokenizer), projected=True, width=24, seed=6),
        tokenizer_2=tokenizer,
        add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def write_stable_diffusion(folder: Path, prediction: str = "epsilon", lcm: bool = False) -> Path:
    """Convolutions where XL has linear layers, and one text encoder; `prediction` v_prediction is Stable Diffusion 2's."""
    tokenizer = clip_tokenizer()
    ddim = DDIMScheduler(**BETAS, prediction_type=prediction, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipeline = (LatentConsistencyModelPipeline if lcm else StableDiffusionPipeline)(
        unet=unet(cross_attention_dim=32, attention_head_dim=4, time_cond_proj_dim=12 if lcm else None),
        scheduler=LCMScheduler(**BETAS) if lcm else ddim,
        vae=autoencoder(shift_factor=None),
        text_encoder=clip_encoder(len(tokenizer), projected=False),
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder
