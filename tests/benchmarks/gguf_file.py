"""A checkpoint folder's weights as the file that llama.cpp reads, in bfloat16 or in 8-bit blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import gguf
import torch
from safetensors import safe_open

Precision = Literal["bf16", "q8_0"]
QUANTS = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
FILE_TYPES = {"bf16": gguf.LlamaFileType.MOSTLY_BF16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


def write_gguf(folder: Path, precision: Precision) -> Path:
    """`folder/model-PRECISION.gguf`: matrices in this precision, norms in float32; written once."""
    path = folder / f"model-{precision}.gguf"
    if path.is_file():
        return path
    config = json.loads((folder / "config.json").read_text())
    unfinished = path.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, "qwen3", use_temp_file=False)
    writer.add_name("random")
    writer.add_file_type(FILE_TYPES[precision])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _add_tokenizer(writer, folder, config["eos_token_id"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    with safe_open(folder / "model.safetensors", "pt") as weights:
        for name in sorted(weights.keys()):
            tensor = weights.get_tensor(name).to(torch.float32).numpy()
            target = names.get_name(name, try_suffixes=(".weight",))
            assert target is not None, f"llama.cpp has no name for {name}"
            if tensor.ndim == 1:
                writer.add_tensor(target, tensor)
            else:
                quant = QUANTS[precision]
                writer.add_tensor(target, gguf.quantize(tensor, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unfinished.rename(path)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, eos: int) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())
    by_id = {number: piece for piece, number in model["model"]["vocab"].items()}
    by_id |= {added["id"]: added["content"] for added in model["added_tokens"]}
    special = {added["id"] for added in model["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id[i] for i in range(len(by_id))])
    writer.add_token_types([
        gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(by_id))
    ])  # fmt: skip
    writer.add_token_merges([" ".join(pair) for pair in model["model"]["merges"]])
    writer.add_bos_token_id(eos)
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(False)
