"""Small Sana and Sana-Sprint."""

from __future__ import annotations

from pathlib import Path

from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from transformers import Gemma2Config, Gemma2Model

from service.models.pipelines.sana import INSTRUCTION
from tests.pipeline_checkpoints.parts import seeded
from tests.pipeline_checkpoints.tokenizers import gemma_tokenizer


def write_sana(folder: Path, sprint: bool = False) -> Path:
    """Pictures of 32x32, of which four pixels a side are one latent pixel."""
    tokenizer = gemma_tokenizer(INSTRUCTION)
    transformer = seeded(
        lambda: SanaTransformer2DModel(
            sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=4, num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32,
            caption_channels=16, guidance_embeds=sprint, qk_norm="rms_norm_across_heads" if sprint else None,
        ),
        5,
    )  # fmt: skip
    vae = seeded(
        lambda: AutoencoderDC(
            latent_channels=4, attention_head_dim=4, encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8, 16),
            decoder_block_out_channels=(8, 8, 16), encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), (3,)), decoder_qkv_multiscales=((), (), (3,)), scaling_factor=0.4,
            downsample_block_type="Conv", upsample_block_type="interpolate",
        ),
        4,
    )  # fmt: skip
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=4096, initializer_range=0.3,
    )  # fmt: skip
    if sprint:
        scheduler = SCMScheduler()
    else:
        scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = (SanaSprintPipeline if sprint else SanaPipeline)(
        transformer=transformer,
        scheduler=scheduler,
        vae=vae,
        text_encoder=seeded(lambda: Gemma2Model(config), 3),
        tokenizer=tokenizer,
    )
    pipeline.save_pretrained(folder)
    return folder
