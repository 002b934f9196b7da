"""Random checkpoints of real shapes in Qwen3's layout, so that every engine is measured on the same weights.

Nothing here knows Stride: what is written is what anybody would hand to it, a folder with `config.json`,
`model.safetensors` in bfloat16 and `tokenizer.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

LETTERS = "abcdefghijklmnop"
"""Prompts are made of these: no merge of the tokeniser joins them, so a letter is a token for every engine."""


@dataclass(frozen=True)
class Shape:
    """A decoder with tied embeddings; its last token id ends a text."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    rope_theta: float = 10_000.0
    context: int = 2048

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of Qwen3ForCausalLM."""
        yield "model.embed_tokens.weight", (self.vocab, self.width)
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            yield f"{layer}.input_layernorm.weight", (self.width,)
            yield f"{layer}.self_attn.q_proj.weight", (self.heads * self.head_dim, self.width)
            yield f"{layer}.self_attn.k_proj.weight", (self.kv_heads * self.head_dim, self.width)
            yield f"{layer}.self_attn.v_proj.weight", (self.kv_heads * self.head_dim, self.width)
            yield f"{layer}.self_attn.o_proj.weight", (self.width, self.heads * self.head_dim)
            yield f"{layer}.self_attn.q_norm.weight", (self.head_dim,)
            yield f"{layer}.self_attn.k_norm.weight", (self.head_dim,)
            yield f"{layer}.post_attention_layernorm.weight", (self.width,)
            yield f"{layer}.mlp.gate_proj.weight", (self.intermediate, self.width)
            yield f"{layer}.mlp.up_proj.weight", (self.intermediate, self.width)
            yield f"{layer}.mlp.down_proj.weight", (self.width, self.intermediate)
        yield "model.norm.weight", (self.width,)

    def matrix_weights(self) -> int:
        """Weights that a token's forward has to read: every matrix, the tied one as the output head."""
        return sum(math.prod(shape) for _, shape in self.tensors() if len(shape) == 2)

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "max_position_embeddings": self.context,
            "eos_token_id": self.vocab - 1,
            "torch_dtype": "bfloat16",
        }


SHAPES = {
    "15M": Shape(vocab=32_000, width=288, layers=6, heads=6, kv_heads=6, head_dim=48, intermediate=768),
    "135M": Shape(vocab=49_152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, intermediate=1536),
    "0.6B": Shape(
        vocab=151_936, width=1024, layers=28, heads=16, kv_heads=8, head_dim=128, intermediate=3072, rope_theta=1e6
    ),
}  # fmt: skip
"""stories15M's, SmolLM2-135M's and Qwen3-0.6B's, the first two with Qwen3's norms of queries and keys."""


def write_checkpoint(folder: Path, shape: Shape, seed: int = 0, device: str = "cpu") -> Path:
    """A model folder with random weights, drawn on `device`. Their scale lets every layer count: with small ones a tied head
    would only repeat the last token, and an engine that computes a layer wrongly would not be found out."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device).manual_seed(seed)
    weights = {name: _random(name, size, generator).cpu() for name, size in shape.tensors()}
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    byte_tokenizer(shape.vocab).save(str(folder / "tokenizer.json"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _random(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(size) == 1:
        return (1 + 0.1 * torch.randn(size, generator=generator, device=generator.device)).bfloat16()
    scale = 0.05 if "embed" in name else size[1] ** -0.5
    return (scale * torch.randn(size, generator=generator, device=generator.device)).bfloat16()


def byte_tokenizer(vocab: int) -> Tokenizer:
    """Byte-level BPE with one merge; what no text encodes to, still decodes to a word of its own."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "xy"]
    pieces += [f"Ġw{number}" for number in range(len(pieces), vocab - 1)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("x", "y")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    assert tokenizer.get_vocab_size() == vocab
    return tokenizer
