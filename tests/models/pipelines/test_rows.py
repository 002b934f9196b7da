"""A row of an evaluation is what it is alone, whatever stands beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from service.models.pipelines.pipeline import Pipeline
from tests.few import few
from tests.pipelines import FAMILIES, noise_for

NETWORKS = [name for name in FAMILIES if name not in ("flux2_klein_distilled", "z_image_turbo")]
"""Those whose only difference is what is default are one."""
OF_EACH = ("stable_diffusion_3", "flux_dev", "flux2_klein", "qwen_image", "z_image")
TEXTS = ["", "a red circle", "a very long text, " * 9, "two blue squares beside a green one"]


@pytest.mark.parametrize("name", few(NETWORKS, *OF_EACH))
@torch.inference_mode()
def test_rows_of_any_text_and_time_share_an_evaluation(name: str, network_of: Callable[[str], Pipeline]) -> None:
    network = network_of(name)
    x = noise_for(network, len(TEXTS))
    t, scale = torch.tensor([1000.0, 720.5, 31.25, 400.0]), torch.tensor([1.0, 3.5, 7.0, 2.0])
    conditions = network.encode(TEXTS)
    together = network.evaluate(x, t, t, scale, conditions, [()] * len(TEXTS))
    assert together.dtype == torch.float32 and together.shape == x.shape
    for i, text in enumerate(TEXTS):
        row, (condition,) = slice(i, i + 1), network.encode([text])
        alone = network.evaluate(x[row], t[row], t[row], scale[row], [condition], [()])
        assert (together[row] - alone).norm() < 1e-5 * alone.norm()


@pytest.mark.parametrize("name", few(NETWORKS, *OF_EACH))
@torch.inference_mode()
def test_an_evaluation_depends_on_its_text_its_time_and_its_latent(name: str, network_of: Callable[[str], Pipeline]) -> None:
    network = network_of(name)
    x = noise_for(network, 1).expand(4, -1, -1, -1).clone()
    x[3] = noise_for(network, 1, seed=1)
    texts = ["a red circle", "two blue squares", "a red circle", "a red circle"]
    t = torch.tensor([700.0, 700.0, 200.0, 700.0])
    out = network.evaluate(x, t, t, torch.full((4,), 3.0), network.encode(texts), [()] * 4)
    for other in out[1:]:
        assert (other - out[0]).norm() > 1e-3 * out[0].norm()


@torch.inference_mode()
def test_the_scale_of_guidance_is_an_input_of_flux_dev(network_of: Callable[[str], Pipeline]) -> None:
    network = network_of("flux_dev")
    assert network.guidance_input == "always"
    x, t = noise_for(network, 1).expand(2, -1, -1, -1), torch.tensor([700.0, 700.0])
    out = network.evaluate(x, t, t, torch.tensor([1.0, 6.0]), network.encode(["a", "a"]), [(), ()])
    assert (out[1] - out[0]).norm() > 1e-3 * out[0].norm()
