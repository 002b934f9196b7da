"""The class-conditional transformer agrees with diffusers' and with the papers' equations, checkpoint by checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.models.dit import DiT, DitConfig
from service.models.dit_loading import load_diffusers_dit, load_dit
from service.models.errors import ModelError
from tests.dit_checkpoints import SMALL, diffusers_dit, small_dit, write_dit

CPU, FLOAT = torch.device("cpu"), torch.float32


def inputs(rows: int = 4, top: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    t = torch.rand(rows, generator=generator) * top
    return (
        torch.randn(rows, 4, 8, 8, generator=generator),
        t,
        t * torch.rand(rows, generator=generator),
        1.0 + 4.0 * torch.rand(rows, generator=generator),
        torch.randint(0, 11, (rows,), generator=generator),
    )


def loaded(folder: Path) -> DiT:
    config = DitConfig.from_json(json.loads((folder / "config.json").read_text()))
    return load_dit("small", folder, config, FLOAT, CPU)


def reloaded(network: torch.nn.Module, folder: Path) -> DiT:
    """diffusers' network through its own folder."""
    network.save_pretrained(folder)
    return load_diffusers_dit("small", folder, json.loads((folder / "config.json").read_text()), {}, FLOAT, CPU)


@pytest.mark.parametrize("copies", [True, False])
@torch.no_grad()
def test_diffusers_layout_computes_what_diffusers_does(tmp_path: Path, copies: bool) -> None:
    reference = diffusers_dit(copies=copies)
    network = reloaded(reference, tmp_path)
    assert network.config.own_embedders is not copies
    x, t, s, guidance, labels = inputs(top=999.0)
    expected = reference(x, timestep=t, class_labels=labels).sample[:, :4]
    torch.testing.assert_close(network(x, t, s, guidance, labels), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_published_layout_computes_what_diffusers_does_with_the_same_numbers(tmp_path: Path) -> None:
    """The published names with diffusers' weights; only the frequencies and a norm's epsilon have to be told."""
    reference = diffusers_dit()
    own = reloaded(reference, tmp_path / "diffusers")
    network = loaded(write_dit(tmp_path / "published", own))
    x, t, s, guidance, labels = inputs(top=999.0)
    expected = reference(x, timestep=t, class_labels=labels).sample[:, :4]
    torch.testing.assert_close(network(x, t, s, guidance, labels), expected, atol=1e-5, rtol=1e-5)


def plain(tensors: dict[str, Tensor], config: DitConfig, x: Tensor, scalars: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The network of DiT's section 3 (and of SiT and MeanFlow), written out; `scalars`: what each embedder is told."""

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def normed(value: Tensor) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / (value.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()

    condition = tensors["y_embedder.embedding_table.weight"][labels]
    for name, value in scalars.items():
        angles = value[:, None] * torch.exp(-math.log(10000.0) * torch.arange(128) / 128)
        hidden = linear(f"{name}.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=1))
        condition = condition + linear(f"{name}.mlp.2", F.silu(hidden))
    size, side, heads = config.patch_size, config.input_size // config.patch_size, config.heads
    cut = x.reshape(len(x), -1, side, size, side, size).permute(0, 2, 4, 1, 3, 5).reshape(len(x), side * side, -1)
    tokens = cut @ tensors["x_embedder.proj.weight"].flatten(1).T + tensors["x_embedder.proj.bias"] + tensors["pos_embed"]
    for i in range(config.depth):
        parts = linear(f"blocks.{i}.adaLN_modulation.1", F.silu(condition))[:, None].chunk(6, dim=-1)
        hidden = normed(tokens) * (1 + parts[1]) + parts[0]
        query, key, value = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in linear(f"blocks.{i}.attn.qkv", hidden).chunk(3, dim=-1)
        )
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        tokens = tokens + parts[2] * linear(f"blocks.{i}.attn.proj", (weights @ value).transpose(1, 2).flatten(2))
        hidden = normed(tokens) * (1 + parts[4]) + parts[3]
        inner = F.gelu(linear(f"blocks.{i}.mlp.fc1", hidden), approximate="tanh")
        tokens = tokens + parts[5] * linear(f"blocks.{i}.mlp.fc2", inner)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(condition))[:, None].chunk(2, dim=-1)
    out = linear("final_layer.linear", normed(tokens) * (1 + scale) + shift)
    out = out.reshape(len(x), side, side, size, size, -1).permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, *x.shape[2:])
    return out[:, : x.shape[1]]


@pytest.mark.parametrize(
    ("layout", "changes", "second"),
    [
        ("dit", {}, None),
        ("sit", {"time_scale": 1000.0}, None),
        ("meanflow", {}, "span"),
        ("meanflow", {"second_time": "target", "learn_sigma": True}, "target"),
        ("meanflow", {"guidance_input": True}, "span"),
    ],
)
@torch.no_grad()
def test_published_layouts_compute_the_papers_equations(
    tmp_path: Path, layout: str, changes: dict[str, object], second: str | None
) -> None:
    network = loaded(write_dit(tmp_path, small_dit(layout, **changes)))
    x, t, s, guidance, labels = inputs()
    scale = network.config.time_scale
    scalars = {"t_embedder": t * scale}
    if second is not None:
        scalars["r_embedder"] = (t - s if second == "span" else s) * scale
    if network.config.guidance_input:
        scalars["w_embedder"] = 1 - 1 / guidance
    expected = plain(load_file(tmp_path / "model.safetensors"), network.config, x, scalars, labels)
    torch.testing.assert_close(network(x, t, s, guidance, labels), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_names_of_alphaflow_are_read(tmp_path: Path) -> None:
    network = small_dit("meanflow", second_time="target")
    renamed = {"t_embedder": "noise_labels_embedder", "r_embedder": "noise_labels_next_embedder"}
    theirs = {}
    for name, tensor in network.state_dict().items():
        first, _, rest = name.partition(".")
        theirs[f"{renamed[first]}.{rest}" if first in renamed else name] = tensor
    again = loaded(write_dit(tmp_path, network, theirs))
    torch.testing.assert_close(again(*inputs()), network(*inputs()))


@torch.no_grad()
def test_positions_are_computed_where_a_checkpoint_has_none(tmp_path: Path) -> None:
    reference = diffusers_dit()
    network = small_dit("dit")
    tensors = {name: value for name, value in network.state_dict().items() if name != "pos_embed"}
    torch.testing.assert_close(loaded(write_dit(tmp_path, network, tensors)).pos_embed, reference.pos_embed.pos_embed)


@torch.no_grad()
def test_rows_of_a_batch_are_what_they_are_alone() -> None:
    network = small_dit("meanflow", guidance_input=True)
    batch = inputs(5)
    together = network(*batch)
    for row in range(5):
        alone = network(*(part[row : row + 1] for part in batch))
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


def changed(tensors: dict[str, Tensor], change: str) -> dict[str, Tensor]:
    name = "blocks.1.attn.proj.weight"
    match change:
        case "missing":
            return {key: value for key, value in tensors.items() if key != name}
        case "left over":
            return {**tensors, "projectors.0.weight": torch.zeros(2)}
        case "shape":
            return {**tensors, name: torch.zeros(3, 3)}
        case _:
            return {**tensors, name: torch.full_like(tensors[name], math.nan)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("missing", "blocks.1.attn.proj.weight is missing"),
        ("left over", "projectors.0.weight"),
        ("shape", r"blocks.1.attn.proj.weight has shape \(3, 3\), expected \(32, 32\)"),
        ("nan", "blocks.1.attn.proj.weight holds numbers that are not finite"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path: Path, change: str, named: str) -> None:
    network = small_dit("dit")
    with pytest.raises(ModelError, match=named):
        loaded(write_dit(tmp_path, network, changed(network.state_dict(), change)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention_bias": False}, "attention_bias must be True"),
        ({"activation_fn": "geglu"}, "activation_fn must be 'gelu-approximate'"),
        ({"out_channels": 5}, "out_channels must be in_channels"),
    ],
)
def test_a_diffusers_network_of_another_kind_is_refused_by_name(tmp_path: Path, change: dict[str, object], named: str) -> None:
    diffusers_dit().save_pretrained(tmp_path)
    config = {**json.loads((tmp_path / "config.json").read_text()), **change}
    with pytest.raises(ModelError, match=named):
        load_diffusers_dit("small", tmp_path, config, {}, FLOAT, CPU)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layout": "dot"}, "layout"),
        ({"depth": 0}, "depth"),
        ({"widht": 32}, "widht"),
        ({"width": 30}, "width must be a multiple"),
        ({"patch_size": 3}, "input_size must be a multiple"),
        ({"guidance_input": True}, "guidance_input is for layout meanflow"),
        ({"labels": {"10": "tench"}}, "labels must be numbered"),
        ({"model_type": "llama"}, "model_type"),
    ],
)
def test_a_config_that_is_wrong_is_refused_by_field(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DitConfig.from_json({"layout": "dit", **SMALL, **change})


def test_a_config_survives_being_written() -> None:
    config = DitConfig.from_json({"layout": "meanflow", **SMALL, "labels": {"3": "cat"}, "guidance_input": True})
    assert DitConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_tensors_in_shards_are_read(tmp_path: Path) -> None:
    network = small_dit("dit")
    write_dit(tmp_path, network)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, tmp_path / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.testing.assert_close(loaded(tmp_path)(*inputs()), network(*inputs()))
