"""A text model's folder in Hugging Face's layout: written file by file, each one atomically."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor

from service.models.decoder import Decoder, DecoderConfig
from service.models.families import read_config
from service.training.byte_tokenizer import byte_tokenizer, tokenizer_settings
from service.training.checkpointing import replace_file


def write_text_model(folder: Path, config: DecoderConfig, weights: dict[str, Tensor]) -> None:
    """Write configuration, tokeniser and, in float16, the weights."""
    tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    half = {name: weight.detach().to(torch.float16).contiguous() for name, weight in weights.items()}
    for name, content in {
        "config.json": config.to_json(),
        "generation_config.json": {**tokens, "do_sample": True, "temperature": 0.8},
        "tokenizer_config.json": tokenizer_settings(config.max_position_embeddings),
    }.items():
        replace_file(folder / name, (json.dumps(content, indent=2) + "\n").encode())
    replace_file(folder / "tokenizer.json", (byte_tokenizer().to_str(pretty=True) + "\n").encode())
    replace_file(folder / "model.safetensors", save(half, metadata={"format": "pt"}))


def read_text_model(folder: Path) -> tuple[Decoder, Tokenizer]:
    """The decoder, in float32 and evaluation mode, and its tokeniser."""
    config = read_config(json.loads((folder / "config.json").read_text()))
    decoder = Decoder(config)
    decoder.load_state_dict(load_file(folder / "model.safetensors"))
    return decoder.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
