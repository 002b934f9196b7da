"""Every stage runs in bfloat16 too, near what it is in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from service.models.pipelines.folder import load_pipeline
from service.models.pipelines.pipeline import Pipeline
from tests.pipelines import SIZE, noise_for

NAMES = ["stable_diffusion_3", "stable_diffusion_3_without_t5", "flux_dev", "flux2_klein", "qwen_image", "z_image"]


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_bfloat16_is_near_float32(
    name: str, pipeline_folder: Callable[[str], Path], network_of: Callable[[str], Pipeline]
) -> None:
    exact = network_of(name)
    half = load_pipeline("half", pipeline_folder(name), torch.bfloat16, torch.device("cpu"))
    assert half.transformer.dtype == torch.bfloat16
    # Times and scales that bfloat16 has: the networks round them, as they did in training, and a rounded time is another time.
    x, t, scale = noise_for(exact, 2), torch.tensor([500.0, 250.0]), torch.full((2,), 4.0)
    pictures = torch.randint(0, 256, (1, SIZE[1], SIZE[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    def stages(network: Pipeline) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        texts = network.encode(["a red circle", "two blue squares, side by side"])
        velocity = network.evaluate(x, t, t, scale, texts, [(), ()])
        return velocity, network.decode(x).float() / 255, network.embed(pictures)

    for ours, expected in zip(stages(half), stages(exact), strict=True):
        assert ours.dtype == expected.dtype and ours.shape == expected.shape
        assert (ours - expected).norm() < 0.1 * expected.norm()
