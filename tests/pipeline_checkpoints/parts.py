"""Random text encoders and VAEs, a few layers deep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)


def seeded(make: Callable[[], Any], seed: int, strength: float = 1.0) -> Any:
    """A network whose weights depend on the seed alone, its matrices `strength` times what they are in a new one."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        network = make().eval()
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(strength)
        return network


def clip_encoder(vocabulary: int, projected: bool, width: int = 32, seed: int = 1) -> Any:
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=width, max_position_embeddings=77, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
        initializer_factor=5.0,
    )  # fmt: skip
    return seeded(lambda: (CLIPTextModelWithProjection if projected else CLIPTextModel)(config), seed)


def t5_encoder(vocabulary: int, width: int = 32, seed: int = 2) -> T5EncoderModel:
    config = T5Config(vocab_size=vocabulary, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4, is_gated_act=True)
    return seeded(lambda: T5EncoderModel(config), seed)


def qwen3(vocabulary: int, layers: int, head: bool, width: int = 16, seed: int = 3) -> Qwen3Model | Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=2048, initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    return seeded(lambda: (Qwen3ForCausalLM if head else Qwen3Model)(config), seed)


def autoencoder(channels: int = 4, seed: int = 4, **settings: Any) -> AutoencoderKL:
    """Two pixels a side are one latent pixel."""
    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1, norm_num_groups=4, latent_channels=channels, use_quant_conv=False, use_post_quant_conv=False,
            **{"scaling_factor": 1.5, "shift_factor": 0.06, **settings},
        ),
        seed,
    )  # fmt: skip
