"""Small random checkpoints of class-conditional diffusion transformers, in the layouts that are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from service.models.dit import DiT, DitConfig

SMALL: dict[str, Any] = {"depth": 3, "width": 32, "heads": 2, "patch_size": 2, "input_size": 8, "classes": 10}


def randomised(network: nn.Module, seed: int = 0, scale: float = 0.15) -> nn.Module:
    """The network with every parameter drawn anew, small enough for all of its branches to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def small_dit(layout: str, **changes: Any) -> DiT:
    """A DiT with random numbers in every tensor, the positions too."""
    network = randomised(DiT(DitConfig.from_json({"layout": layout, **SMALL, **changes})))
    assert isinstance(network, DiT)
    return network


def write_dit(folder: Path, network: DiT, tensors: dict[str, Tensor] | None = None) -> Path:
    """In the published layout, or with these `tensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(network.config.to_json()))
    save_file(tensors or {name: value.contiguous() for name, value in network.state_dict().items()}, folder / "model.safetensors")
    return folder


def diffusers_dit(seed: int = 0, copies: bool = True, **changes: Any) -> Any:
    """diffusers' network; with `copies` its blocks embed time and class alike, as in what was converted."""
    from diffusers import DiTTransformer2DModel

    shape = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 3}
    network = DiTTransformer2DModel(**{**shape, "sample_size": 8, "num_embeds_ada_norm": 10, **changes})
    randomised(network, seed)
    if copies:
        first, *others = (block.norm1.emb for block in network.transformer_blocks)
        for other in others:
            other.load_state_dict(first.state_dict())
    return network
