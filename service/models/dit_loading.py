"""Published checkpoints of class-conditional diffusion transformers, in their own layouts and in diffusers'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from service.models.dit import DiT, DitConfig, grid_positions
from service.models.errors import ModelError
from service.models.family import Family
from service.models.filling import Place, fill, fitting, materialise, own_places, split
from service.models.memory import available_memory
from service.models.model_spec import readable
from service.models.safetensors_files import SafetensorsFolder

PUBLISHED = Family(
    names=(
        (r"^noise_labels_embedder\.", "t_embedder."),  # AlphaFlow, arXiv 2510.20771
        (r"^noise_labels_next_embedder\.", "r_embedder."),
    )
)
"""The network's own names are those of DiT, SiT and MeanFlow."""

_EMBEDDERS = r"norm1\.emb\."
_DIFFUSERS = (
    (r"^pos_embed\.proj\.", "x_embedder.proj."),
    (r"^transformer_blocks\.0\.norm1\.emb\.", ""),
    (rf"^transformer_blocks\.(\d+)\.{_EMBEDDERS}", r"blocks.\1."),
    (r"timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
    (r"timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
    (r"class_embedder\.", "y_embedder."),
    (r"^transformer_blocks\.(\d+)\.norm1\.linear\.", r"blocks.\1.adaLN_modulation.1."),
    (r"^transformer_blocks\.(\d+)\.attn1\.to_out\.0\.", r"blocks.\1.attn.proj."),
    (r"^transformer_blocks\.(\d+)\.attn1\.", r"blocks.\1.attn."),
    (r"^transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.", r"blocks.\1.mlp.fc1."),
    (r"^transformer_blocks\.(\d+)\.ff\.net\.2\.", r"blocks.\1.mlp.fc2."),
    (r"^proj_out_1\.", "final_layer.adaLN_modulation.1."),
    (r"^proj_out_2\.", "final_layer.linear."),
)
DIFFUSERS_STEM = "diffusion_pytorch_model"

_FIXED = {
    "activation_fn": "gelu-approximate", "attention_bias": True, "norm_type": "ada_norm_zero", "norm_elementwise_affine": False,
}  # fmt: skip
"""What diffusers' DiT can say in its config.json and this network has in one way alone."""


def load_dit(name: str, folder: Path, config: DitConfig, dtype: torch.dtype, device: torch.device) -> DiT:
    """A folder with `model.safetensors`. Raises ModelError for a tensor that is missing, left over, of another shape or not
    finite."""
    return _filled(name, config, SafetensorsFolder(folder), PUBLISHED, dtype, device)


def load_diffusers_dit(
    name: str, folder: Path, json: Mapping[str, Any], labels: Mapping[int, str], dtype: torch.dtype, device: torch.device
) -> DiT:
    """The folder of a `DiTTransformer2DModel`, whose config.json is `json`. Raises ModelError as above, and for a setting that
    this network does not have, by name."""
    checkpoint = SafetensorsFolder(folder, DIFFUSERS_STEM)
    try:
        config = _diffusers_config(json, labels, _own_embedders(checkpoint))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from error
    shared = r"^$" if config.own_embedders else rf"^transformer_blocks\.[1-9]\d*\.{_EMBEDDERS}"
    return _filled(name, config, checkpoint, Family(names=_DIFFUSERS, ignored=shared), dtype, device)


def _diffusers_config(json: Mapping[str, Any], labels: Mapping[int, str], own_embedders: bool) -> DitConfig:
    for key, expected in _FIXED.items():
        if json.get(key, expected) != expected:
            raise ValueError(f"{key} must be {expected!r}, not {json[key]!r}")
    channels, outputs = json["in_channels"], json.get("out_channels") or json["in_channels"]
    if outputs not in (channels, 2 * channels):
        raise ValueError(f"out_channels must be in_channels ({channels}) or twice as many, not {outputs}")
    return DitConfig.from_json(
        {
            "layout": "dit",
            "depth": json["num_layers"],
            "width": json["num_attention_heads"] * json["attention_head_dim"],
            "heads": json["num_attention_heads"],
            "patch_size": json["patch_size"],
            "input_size": json["sample_size"],
            "channels": channels,
            "classes": json["num_embeds_ada_norm"],
            "labels": dict(labels),
            "learn_sigma": outputs == 2 * channels,
            "downscale_freq_shift": 1,
            "mlp_norm_eps": json.get("norm_eps", 1e-5),
            "own_embedders": own_embedders,
        }
    )


def _own_embedders(checkpoint: SafetensorsFolder) -> bool:
    """Whether the blocks embed time and class in different ways. In what was converted they are copies of one another."""
    first = "transformer_blocks.0.norm1.emb."
    for name in [name for name in checkpoint.tensors if name.startswith(first)]:
        reference = checkpoint.tensor(name)
        block = 1
        while (copy := f"transformer_blocks.{block}.norm1.emb.{name.removeprefix(first)}") in checkpoint.tensors:
            if not torch.equal(checkpoint.tensor(copy), reference):
                return True
            block += 1
    return False


def _filled(
    name: str, config: DitConfig, checkpoint: SafetensorsFolder, family: Family, dtype: torch.dtype, device: torch.device
) -> DiT:
    with torch.device("meta"):
        network = DiT(config)
    needed, room = sum(parameter.numel() for parameter in network.parameters()) * dtype.itemsize, available_memory(device)
    if needed > room:
        hint = "; dtype=bfloat16 needs half" if dtype == torch.float32 else ""
        raise ModelError(f"needs {readable(needed)} of memory for weights, and {device} has {readable(room)}{hint}")
    materialise(network, dtype, device)
    targets = fitting(network, checkpoint, family, _places(network, config), optional=("pos_embed",))
    positions = grid_positions(config.width, config.side).to(device, dtype)
    network.pos_embed = nn.Parameter(positions, requires_grad=False)
    fill(name, checkpoint, targets, family)
    return network.requires_grad_(False).eval()


def _places(network: DiT, config: DitConfig) -> dict[str, Place]:
    """By the network's own names; queries, keys and values also by diffusers' three."""
    found = own_places(network)
    for block in range(config.depth):
        split(found, f"blocks.{block}.attn", "qkv", ("to_q", "to_k", "to_v"), [config.width] * 3)
    return found
