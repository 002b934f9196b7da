"""LoRA adapters of random numbers, and networks with them merged into their weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
LAYOUTS = {
    "peft": ("{}.lora_A.weight", "{}.lora_B.weight"),
    "peft, named": ("{}.lora_A.default.weight", "{}.lora_B.default.weight"),
    "diffusers": ("{}.lora.down.weight", "{}.lora.up.weight"),
    "kohya": ("{}.lora_down.weight", "{}.lora_up.weight"),
}


@dataclass(frozen=True)
class RandomAdapter:
    """Halves by layer: down [r, ...], up [out, r, ...], and a strength for all of them."""

    halves: Mapping[str, tuple[Tensor, Tensor]]
    strength: float = 1.0

    def save(self, file: Path, prefix: str = "transformer.", layout: str = "peft", alphas: bool = False) -> Path:
        save_file(self.tensors(prefix, layout, alphas), file)
        return file

    def tensors(self, prefix: str, layout: str, alphas: bool) -> dict[str, Tensor]:
        """kohya's layout has `_` for dots in names of layers. `alphas` says the strength in tensors of the file."""
        tensors = {}
        for layer, (down, up) in self.halves.items():
            name = prefix + (layer.replace(".", "_") if layout == "kohya" else layer)
            tensors[LAYOUTS[layout][0].format(name)] = down.contiguous()
            tensors[LAYOUTS[layout][1].format(name)] = up.contiguous()
            if alphas:
                tensors[f"{name}.alpha"] = torch.tensor(self.strength * len(down))
        return tensors


def random_adapter(
    network: nn.Module, layers: Sequence[str], rank: int = 3, seed: int = 0, strength: float = 1.0
) -> RandomAdapter:
    """An adapter large enough to be seen in what the network returns."""
    generator = torch.Generator().manual_seed(seed)
    modules = dict(network.named_modules())
    halves = {}
    for layer in layers:
        weight = modules[layer].weight
        assert isinstance(weight, Tensor)
        size = weight.float().std() / rank**0.5
        down = torch.randn(rank, *weight.shape[1:], generator=generator)
        up = torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2), generator=generator) * size
        halves[layer] = (down / down[0].numel() ** 0.5 * 3, up)
    return RandomAdapter(halves, strength)


def merged(network: Network, chosen: Sequence[tuple[RandomAdapter, float]]) -> Network:
    """A copy with W + scale·strength·up·down in place of each W."""
    copied = copy.deepcopy(network)
    modules = dict(copied.named_modules())
    with torch.no_grad():
        for adapter, scale in chosen:
            for layer, (down, up) in adapter.halves.items():
                weight = modules[layer].weight
                assert isinstance(weight, Tensor)
                update = (up.flatten(1) @ down.flatten(1)).view(weight.shape)
                weight += (scale * adapter.strength * update).to(weight.dtype)
    return copied
