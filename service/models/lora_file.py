"""LoRA adapters in safetensors files: low-rank updates of a network's layers, by the layers' names as the file writes them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from service.models.errors import ModelError

IN_FOLDER = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
METADATA = "lora_adapter_metadata"
PARTS = (
    (".lora_A.weight", "down"), (".lora_B.weight", "up"),
    (".lora.down.weight", "down"), (".lora.up.weight", "up"),
    (".lora_down.weight", "down"), (".lora_up.weight", "up"),
    ("_lora.down.weight", "down"), ("_lora.up.weight", "up"),
    (".lora_linear_layer.down.weight", "down"), (".lora_linear_layer.up.weight", "up"),
    (".alpha", "alpha"),
)  # fmt: skip
"""How names of tensors end, and what they then are: PEFT's layout, diffusers' older ones, kohya's."""
NAMED_DEFAULT = re.compile(r"(\.lora_[AB])\.default\.weight$")
"""PEFT's own name for an adapter that has none, which it leaves out of files, and others do not."""
OTHER_KINDS = {"magnitude": "DoRA", "dora_scale": "DoRA", "hada_": "LoHa", "lokr_": "LoKr", "diff": "a full difference"}


@dataclass(frozen=True)
class LowRankUpdate:
    """What a file says of one layer: its weight W becomes W + strength·up·down (Hu et al., arXiv 2106.09685, section 4.1).

    down [r, in] or [r, in, kernel, kernel]; up [out, r] or [out, r, 1, 1]; `tensor` is down's name, for errors.
    """

    down: Tensor
    up: Tensor
    strength: float
    tensor: str


@dataclass(frozen=True)
class Scaling:
    """How strong a file's updates are: alpha / r, or alpha / sqrt(r) where it is rank-stabilised (arXiv 2312.03732).

    A layer's alpha is that of the first pattern that its name ends with, else `alpha`, else r, which is a strength of 1.
    """

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    def strength(self, module: str, rank: int, stored: float | None) -> float:
        """`stored`: alpha as a tensor of the file, which comes first."""
        found = [alpha for pattern, alpha in self.patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module)]
        alpha = next(a for a in (stored, *found[:1], self.alpha, float(rank)) if a is not None)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def adapter_files(places: Mapping[str, Path]) -> dict[str, Path]:
    """The file of each adapter by its name. Raises ModelError, which names the adapter."""
    files = {}
    for name, place in places.items():
        try:
            files[name] = adapter_file(place)
        except ModelError as error:
            raise ModelError(f"lora {name}: {error}") from error
    return files


def adapter_file(place: Path) -> Path:
    """A safetensors file, or the one of a folder as diffusers and PEFT write them. Raises ModelError."""
    if place.is_dir():
        found = next((place / name for name in IN_FOLDER if (place / name).is_file()), None)
        if found is None:
            raise ModelError(f"{place} has neither {' nor '.join(IN_FOLDER)}")
        return found
    if place.suffix != ".safetensors":
        raise ModelError(f"{place} is not a safetensors file: pickles can run code, and other formats are not supported")
    if not place.is_file():
        raise ModelError(f"there is no file {place}")
    return place


def read_adapter(file: Path) -> dict[str, LowRankUpdate]:
    """The updates by the names of layers as they are written, with the file's prefixes.

    Raises ModelError for a file that is broken, a tensor that is no part of a LoRA adapter, halves that do not fit, and
    layers that miss one.
    """
    parts: dict[str, dict[str, tuple[str, Tensor]]] = {}
    try:
        with safe_open(file, framework="pt") as opened:
            scalings = _scalings(file, opened.metadata() or {})
            for name in sorted(opened.keys()):
                module, part = _part(file, name)
                parts.setdefault(module, {})[part] = (name, opened.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: {error} (is the file complete?)") from error
    if not parts:
        raise ModelError(f"{file} has no tensors")
    return {module: _update(file, module, given, _of(scalings, module)) for module, given in parts.items()}


def _part(file: Path, name: str) -> tuple[str, str]:
    """The layer's name and what the tensor is of it."""
    written = NAMED_DEFAULT.sub(r"\1.weight", name)
    for ending, part in PARTS:
        if written.endswith(ending):
            module = written.removesuffix(ending)
            # The layout of attention processors: `attn1.processor.to_out_lora` is of the layer `attn1.to_out.0`.
            if ".processor." in module:
                module = module.replace(".processor.", ".")
                module = f"{module}.0" if module.endswith("to_out") else module
            return module, part
    kind = next((kind for sign, kind in OTHER_KINDS.items() if sign in name), None)
    why = f"it belongs to {kind}, and only LoRA is supported" if kind else "it is no part of a LoRA adapter"
    raise ModelError(f"{file}: tensor {name}: {why}")


def _update(file: Path, module: str, given: Mapping[str, tuple[str, Tensor]], scaling: Scaling) -> LowRankUpdate:
    missing = next((part for part in ("down", "up") if part not in given), None)
    if missing:
        (name, _), *_ = given.values()
        raise ModelError(f"{file}: tensor {name} has no {missing} half beside it")
    (down_name, down), (up_name, up) = given["down"], given["up"]
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or min(*down.shape, *up.shape) < 1 or up.shape[2:].numel() != 1:
        raise ModelError(f"{file}: tensors {down_name} {list(down.shape)} and {up_name} {list(up.shape)} are not two matrices")
    if down.shape[0] != up.shape[1]:
        raise ModelError(
            f"{file}: ranks differ: tensor {down_name} {list(down.shape)} has {down.shape[0]}, "
            f"and {up_name} {list(up.shape)} has {up.shape[1]}"
        )
    alpha = None
    if "alpha" in given:
        alpha_name, stored = given["alpha"]
        alpha = float(stored) if stored.numel() == 1 else math.nan
        if not math.isfinite(alpha):
            raise ModelError(f"{file}: tensor {alpha_name} must be one finite number")
    return LowRankUpdate(down, up, scaling.strength(module, down.shape[0], alpha), down_name)


def _of(scalings: Mapping[str, Scaling], module: str) -> Scaling:
    """That of the component that the module belongs to; "" is for all others."""
    found = next((component for component in scalings if component and module.startswith(f"{component}.")), "")
    return scalings.get(found, Scaling())


def _scalings(file: Path, metadata: Mapping[str, str]) -> dict[str, Scaling]:
    """By component: of diffusers' metadata in the file's header (`unet.r`, `text_encoder.lora_alpha`), or of PEFT's
    adapter_config.json beside it."""
    configs: dict[str, dict[str, Any]] = {}
    beside = file.parent / "adapter_config.json"
    try:
        if METADATA in metadata:
            for key, value in json.loads(metadata[METADATA]).items():
                component, _, name = key.rpartition(".")
                configs.setdefault(component, {})[name] = value
        elif file.name == "adapter_model.safetensors" and beside.is_file():
            configs[""] = json.loads(beside.read_text())
        return {component: _scaling(file, config) for component, config in configs.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: its rank and alpha cannot be read: {error}") from error


def _scaling(file: Path, config: Mapping[str, Any]) -> Scaling:
    if config.get("use_dora"):
        raise ModelError(f"{file} is a DoRA adapter, and only LoRA is supported")
    alpha = config.get("lora_alpha")
    patterns = {str(key): float(value) for key, value in (config.get("alpha_pattern") or {}).items()}
    return Scaling(None if alpha is None else float(alpha), patterns, bool(config.get("use_rslora")))
