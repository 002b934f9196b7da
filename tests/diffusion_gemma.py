"""Small random checkpoints of DiffusionGemma, written by transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 300
CANVAS = 8
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1,
    "max_position_embeddings": 256, "sliding_window": 9, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 24,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"], "eos_token_id": 2,
    "bos_token_id": 1,
}  # fmt: skip
VISION = {
    "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


def write_gemma(folder: Path) -> Any:
    """Saves a model into `folder` and returns it, in float32 and with eager attention."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import transformers

    config = transformers.DiffusionGemmaConfig(
        text_config=transformers.DiffusionGemmaTextConfig(**TEXT), vision_config=VISION, canvas_length=CANVAS
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        scales = [buffer for name, buffer in model.named_buffers() if name.endswith("layer_scalar")]
        for parameter in [*model.parameters(), *scales]:
            # Far from the usual beginning: scales and norms that matter, distributions that depend on the text.
            spread = 0.2 if parameter.ndim < 2 else 1.3 * parameter.shape[-1] ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
        # A canvas' last distributions come back forward after forward: with more weight they would double every rounding.
        model.model.decoder.self_conditioning.down_proj.weight.mul_(0.03)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return model
