"""Small random checkpoints in the real formats, written to disk by the tests that load them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from service.models.decoder import Decoder, DecoderConfig
from service.models.flow_transformer import FlowTransformer, FlowTransformerConfig
from service.models.loading import EMBEDDED

MASK, EOS = 257, 256


def write_decoder(
    folder: Path, seed: int = 0, window: int | None = 24, head_dim: int = 8, mask: int | None = MASK, vocab_size: int = 264
) -> Path:
    """A two-layer decoder over the embedded byte tokeniser's vocabulary, with grouped heads and a sliding window. Without a
    mask token it is for noise that is random tokens."""
    config = DecoderConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=head_dim, sliding_window=window, max_position_embeddings=512, mask_token_id=mask,
        block_lengths=(4, 8, 16), eos_token_id=EOS,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    network = Decoder(config)
    with torch.no_grad():
        for parameter in network.parameters():
            # Large weights: the distribution at a position then depends visibly on what came before.
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.4 if parameter.ndim > 1 else 1.0))
    _write(folder, network, config.to_json(), EMBEDDED / "shakespeare")
    return folder


def write_flow_transformer(folder: Path, seed: int = 0) -> Path:
    """A one-block flow transformer for 8x8 pictures."""
    config = FlowTransformerConfig(vocab_size=64, image_size=8, patch_size=4, width=16, depth=1, heads=2)
    generator = torch.Generator().manual_seed(seed)
    network = FlowTransformer(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    _write(folder, network, config.to_json(), EMBEDDED / "shakespeare")
    return folder


def _write(folder: Path, network: torch.nn.Module, config: dict[str, object], tokenizer: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)
