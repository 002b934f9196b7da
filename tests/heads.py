"""Small random heads in the layouts in which they are published, written to disk by the tests that load them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.models.families import read_config


def write_mtp(folder: Path, model: Path, seed: int = 0) -> Path:
    """DeepSeek-V3's layout, in a folder of its own."""
    json_ = json.loads((model / "config.json").read_text())
    return _write(folder, {**json_, "num_nextn_predict_layers": 1}, mtp_tensors(model, seed))


def add_mtp(model: Path, seed: int = 0) -> Path:
    """The same inside the model's own checkpoint, with the copies of embeddings and head that such checkpoints hold."""
    tensors, layers = load_file(model / "model.safetensors"), _layers(model)
    own = mtp_tensors(model, seed)
    for name in ("embed_tokens", "shared_head.head"):
        own[f"model.layers.{layers}.{name}.weight"] = tensors["model.embed_tokens.weight"].clone()
    json_ = json.loads((model / "config.json").read_text())
    return _write(model, {**json_, "num_nextn_predict_layers": 1}, {**tensors, **own})


def mtp_tensors(model: Path, seed: int) -> dict[str, Tensor]:
    at, size = f"model.layers.{_layers(model)}.", _size(model)
    tensors = {at + name: tensor for name, tensor in _layer(model, seed).items()}
    generator = torch.Generator().manual_seed(seed + 1)
    tensors[at + "eh_proj.weight"] = torch.randn(size, 2 * size, generator=generator) * 0.2
    for name in ("enorm", "hnorm", "shared_head.norm"):
        tensors[f"{at}{name}.weight"] = torch.rand(size, generator=generator) + 0.5
    return tensors


def write_eagle(folder: Path, model: Path, seed: int = 0, bias: bool = True) -> Path:
    """EAGLE's layout: no norm before the attention, a copy of the embeddings."""
    json_ = json.loads((model / "config.json").read_text())
    json_.update(num_hidden_layers=1, layer_types=json_["layer_types"][:1], bias=bias)
    size, generator = _size(model), torch.Generator().manual_seed(seed + 1)
    tensors = {f"layers.0.{name}": t for name, t in _layer(model, seed).items() if not name.startswith("input_layernorm")}
    tensors["fc.weight"] = torch.randn(size, 2 * size, generator=generator) * 0.2
    if bias:
        tensors["fc.bias"] = torch.randn(size, generator=generator) * 0.1
    tensors["embed_tokens.weight"] = load_file(model / "model.safetensors")["model.embed_tokens.weight"].clone()
    return _write(folder, json_, tensors)


def write_medusa(folder: Path, model: Path, seed: int = 0, count: int = 3, prefix: str = "") -> Path:
    size, generator = _size(model), torch.Generator().manual_seed(seed)
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    tensors = {}
    for head in range(count):
        tensors[f"{prefix}{head}.0.linear.weight"] = torch.randn(size, size, generator=generator) * 0.2
        tensors[f"{prefix}{head}.0.linear.bias"] = torch.randn(size, generator=generator) * 0.1
        tensors[f"{prefix}{head}.1.weight"] = torch.randn(vocabulary, size, generator=generator) * 0.4
    return _write(folder, {"medusa_num_heads": count, "medusa_num_layers": 1}, tensors)


def _layer(model: Path, seed: int) -> dict[str, Tensor]:
    """Of the shapes of the model's first layer."""
    generator, prefix = torch.Generator().manual_seed(seed), "model.layers.0."
    tensors = {n[len(prefix) :]: t for n, t in load_file(model / "model.safetensors").items() if n.startswith(prefix)}
    return {name: torch.randn(t.shape, generator=generator) * (0.2 if t.ndim > 1 else 1.0) for name, t in tensors.items()}


def _layers(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["num_hidden_layers"])


def _size(model: Path) -> int:
    return read_config(json.loads((model / "config.json").read_text())).hidden_size


def _write(folder: Path, json_: dict[str, object], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(json_))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder
