"""Adapters in every layer of every family's network: a row gets what merged weights give it, whatever is beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from service.models.latent_network import Adapters
from service.models.lora import LoraAdapters
from service.models.pipelines.pipeline import Pipeline
from tests.adapters import RandomAdapter, merged, random_adapter
from tests.few import few
from tests.pipeline_checkpoints.pixart_sigma import write_pixart_sigma
from tests.pipeline_checkpoints.sana import write_sana
from tests.pipeline_checkpoints.stable_diffusion import write_stable_diffusion, write_stable_diffusion_xl
from tests.pipelines import FAMILIES, load, noise_for

WRITERS: dict[str, Callable[[Path], Path]] = {
    **{name: FAMILIES[name].write for name in ("stable_diffusion_3", "flux_dev", "flux2_klein", "qwen_image", "z_image")},
    "stable_diffusion": write_stable_diffusion,
    "stable_diffusion_xl_lcm": partial(write_stable_diffusion_xl, variant="lcm"),
    "pixart_sigma": write_pixart_sigma,
    "sana": write_sana,
    "sana_sprint": partial(write_sana, sprint=True),
}
TEXTS = ["a red circle", "", "two small blue squares beside a very large green one", "a dog"]
ROWS: list[Adapters] = [(), (("ink", 1.0),), (("oil", 0.5), ("ink", -0.5)), (("oil", 1.0),)]


OFTEN = ("stable_diffusion_3", "flux_dev", "flux2_klein", "qwen_image", "z_image", "stable_diffusion", "sana_sprint")


@pytest.mark.parametrize("name", few(WRITERS, *OFTEN))
@torch.inference_mode()
def test_rows_with_adapters_in_every_layer_get_what_merged_weights_give(name: str, tmp_path: Path) -> None:
    network = load(WRITERS[name](tmp_path / "model"))
    adapters = {kind: gentle(network.transformer, seed) for seed, kind in enumerate(("ink", "oil"))}
    files = {kind: adapter.save(tmp_path / f"{kind}.safetensors") for kind, adapter in adapters.items()}
    adapted = copy.copy(network)
    adapted._lora = LoraAdapters(network.transformer, files)
    together = output(adapted, range(4), ROWS)
    plain = output(network, range(4), [()] * 4)
    assert (together[0] - plain[0]).norm() < 1e-5 * plain[0].norm()
    for row in (1, 2, 3):
        weighted = copy.copy(network)
        weighted.transformer = merged(network.transformer, [(adapters[kind], scale) for kind, scale in ROWS[row]])
        expected = output(weighted, [row], [()])[0]
        assert (together[row] - expected).norm() < 1e-4 * expected.norm()
        assert (plain[row] - expected).norm() > 1e-2 * expected.norm()


def gentle(network: nn.Module, seed: int) -> RandomAdapter:
    """In every layer that can have one, small enough not to drown what the network says."""
    kinds = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    layers = [name for name, layer in kinds if isinstance(layer, nn.Linear) or layer.groups == 1]
    adapter = random_adapter(network, layers, rank=2, seed=seed)
    return RandomAdapter({layer: (down, 0.1 * up) for layer, (down, up) in adapter.halves.items()})


def output(network: Pipeline, rows: range | list[int], adapters: list[Adapters]) -> Tensor:
    x = noise_for(network, 4, (32, 32))[list(rows)]
    longest = 1.5 if network.noise.kind == "trigflow" else 950.0
    t = (torch.tensor([1.0, 0.7, 0.4, 0.1]) * longest)[list(rows)]
    conditions = network.encode([TEXTS[row] for row in rows])
    guidance = torch.tensor([2.0, 3.0, 4.0, 5.0])[list(rows)]
    return network.evaluate(x, t, t, guidance, conditions, adapters)
