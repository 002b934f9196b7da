"""Pipelines' rows reuse at different steps, beside adapters and texts of any length, and each is what it is alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from service.models.pipelines.folder import load_pipeline
from service.models.pipelines.pipeline import Pipeline
from service.models.reuse import Reuse
from tests.adapters import random_adapter
from tests.few import few
from tests.pipelines import FAMILIES, noise_for

TEXTS = ["", "a red circle", "a very long text, " * 9, "two blue squares beside a green one"]
THRESHOLDS = [1e9, None, 1e-9, 1e9]


def memories() -> list[Reuse | None]:
    return [None if threshold is None else Reuse(threshold) for threshold in THRESHOLDS]


def steps(network: Pipeline, adapters: list[tuple[tuple[str, float], ...]]) -> None:
    """Row 0 reuses from the second step on, row 3, which comes a step later, from its own second."""
    conditions, together, alone = network.encode(TEXTS), memories(), memories()
    x, drift = noise_for(network, 4), noise_for(network, 4, seed=1)
    for step, rows in enumerate(([0, 1, 2], [2, 0, 3], [0, 3, 1])):
        t, scale = torch.full((len(rows),), 900.0 - 100 * step), torch.full((len(rows),), 3.0)
        latents = x[rows] + 0.1 * step * drift[rows]
        of_rows = [conditions[row] for row in rows], [adapters[row] for row in rows]
        with network.reusing([together[row] for row in rows]):
            out = network.evaluate(latents, t, t, scale, *of_rows)
        for i, row in enumerate(rows):
            with network.reusing([alone[row]]):
                own = slice(i, i + 1)
                expected = network.evaluate(latents[own], t[own], t[own], scale[own], [conditions[row]], [adapters[row]])[0]
            assert (out[i] - expected).norm() < 1e-5 * expected.norm()
    assert [None if row is None else row.reused for row in together] == [2, None, 0, 1]


@pytest.mark.parametrize("name", few(FAMILIES, "stable_diffusion_3", "flux_dev", "flux2_klein", "qwen_image", "z_image"))
@torch.inference_mode()
def test_rows_reuse_at_different_steps(name: str, network_of: Callable[[str], Pipeline]) -> None:
    network = network_of(name)
    assert network.reuses
    steps(network, [()] * 4)


@torch.inference_mode()
def test_adapters_go_to_their_own_rows_when_others_reuse(
    tmp_path: Path, network_of: Callable[[str], Pipeline], pipeline_folder: Callable[[str], Path]
) -> None:
    transformer = network_of("flux_dev").transformer
    layers = [name for name, _ in transformer.named_modules() if name.endswith("attn.to_k")]
    assert {name.split(".")[0] for name in layers} == {"transformer_blocks", "single_transformer_blocks"}
    file = random_adapter(transformer, layers).save(tmp_path / "style.safetensors")
    network = load_pipeline("tiny", pipeline_folder("flux_dev"), torch.float32, torch.device("cpu"), {"style": file})
    steps(network, [(), (("style", 1.0),), (("style", 0.5),), (("style", -1.0),)])
