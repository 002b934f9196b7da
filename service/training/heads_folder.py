"""A folder of trained heads, in the layout in which heads of their kind are published; each file is written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from service.models.decoder_config import DecoderConfig
from service.models.heads import FeatureModule, Heads, MedusaHeads, layer_config
from service.training.checkpointing import replace_file

KINDS = ("mtp", "eagle", "medusa")


def new_heads(kind: str, config: DecoderConfig, depths: int) -> Heads:
    if kind == "medusa":
        return MedusaHeads(config, depths)
    return FeatureModule(layer_config(config), normed=kind == "mtp", entering=kind == "mtp")


def write_heads(folder: Path, heads: Heads, weights: dict[str, Tensor], model_json: dict[str, Any]) -> None:
    """`weights` by the module's own names, in float16; `model_json` is the decoder's config.json."""
    layers = int(model_json["num_hidden_layers"])
    half = {_published(name, heads, layers): tensor.detach().half().contiguous() for name, tensor in weights.items()}
    if isinstance(heads, MedusaHeads):
        content: dict[str, Any] = {"medusa_num_heads": heads.depths, "medusa_num_layers": heads.block_count}
    elif heads.norm is not None:
        content = {**model_json, "num_nextn_predict_layers": 1}
    else:
        content = {**model_json, "num_hidden_layers": 1, "bias": heads.eh_proj.bias is not None}
        if "layer_types" in content:
            content["layer_types"] = content["layer_types"][-1:]
    replace_file(folder / "config.json", (json.dumps(content, indent=2) + "\n").encode())
    replace_file(folder / "model.safetensors", save(half, metadata={"format": "pt"}))


def _published(name: str, heads: Heads, layers: int) -> str:
    if isinstance(heads, MedusaHeads):
        part, head, *rest = name.split(".")
        return f"{head}.{rest[0]}.linear.{rest[1]}" if part == "blocks" else f"{head}.{heads.block_count}.{rest[0]}"
    deepseek = heads.norm is not None
    if name.startswith("layer."):
        return f"model.layers.{layers}.{name[6:]}" if deepseek else f"layers.0.{name[6:]}"
    if name.startswith("norm."):
        return f"model.layers.{layers}.shared_head.{name}"
    return f"model.layers.{layers}.{name}" if deepseek else name.replace("eh_proj", "fc")
