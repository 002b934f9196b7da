"""Pictures by our tables and networks are those of diffusers' own pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from service.models.pipelines.pipeline import Pipeline
from tests.few import few
from tests.pipelines import FAMILIES, SIZE, STEPS, noise_for, reference_pictures, refine, table_for

PROMPTS = ["a red circle", "two small blue squares beside a very large green one"]
NEGATIVE = "blurred, grey"


OFTEN = (
    "stable_diffusion_3", "stable_diffusion_3_without_t5", "flux_dev", "flux_schnell", "flux2_klein", "qwen_image", "z_image",
)  # fmt: skip


@pytest.mark.parametrize("name", few(FAMILIES, *OFTEN))
def test_pictures_are_those_of_diffusers_pipeline(
    name: str, pipeline_folder: Callable[[str], Path], network_of: Callable[[str], Pipeline]
) -> None:
    family, network = FAMILIES[name], network_of(name)
    pipeline = family.reference(pipeline_folder(name))
    noise = noise_for(network, len(PROMPTS))
    negative = {"negative_prompt": [NEGATIVE] * len(PROMPTS)} if family.negative else {}
    expected, pictures = reference_pictures(
        pipeline, family, noise, family.guidance, prompt=list(PROMPTS), width=SIZE[0], height=SIZE[1],
        num_inference_steps=STEPS, **negative,
    )  # fmt: skip

    table = table_for(network, steps=STEPS, guidance=family.guidance)
    negatives = [NEGATIVE if family.negative else ""] * len(PROMPTS)
    states = refine(network, table, noise, PROMPTS, negatives, family.guidance)

    assert len(states) == len(expected) == STEPS
    for ours, theirs in zip(states, expected, strict=True):
        assert (family.seen(ours) - theirs).norm() < 1e-4 * theirs.norm()
    decoded = network.decode(states[-1])
    assert decoded.dtype == torch.uint8 and decoded.shape == (len(PROMPTS), SIZE[1], SIZE[0], 3)
    assert (decoded.float() - pictures).abs().max() <= 1.0
    assert (decoded[0].float() - decoded[1].float()).abs().max() > 10  # as they should be, of other noise and texts


@pytest.mark.parametrize("name", ["stable_diffusion_3", "flux_dev", "flux2_klein", "qwen_image", "z_image"])
def test_a_picture_is_embedded_where_its_vae_puts_it(name: str, network_of: Callable[[str], Pipeline]) -> None:
    """What the VAE makes of the latent of a picture does not depend on who scales it: encode and decode by hand."""
    network = network_of(name)
    pictures = torch.randint(0, 256, (2, SIZE[1], SIZE[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    latents = network.embed(pictures)
    assert latents.shape == (2, *network.latent_shape(*SIZE)) and latents.dtype == torch.float32

    scaled = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    video = name == "qwen_image"
    with torch.no_grad():
        raw = network.vae.encode(scaled[:, :, None] if video else scaled).latent_dist.mode()
        by_hand = network.vae.decode(raw).sample
    by_hand = by_hand[:, :, 0] if video else by_hand
    expected = ((by_hand * 0.5 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
    assert (network.decode(latents).float() - expected).abs().max() <= 1.0


@pytest.mark.parametrize("name", ["stable_diffusion_3", "flux2_klein", "qwen_image"])
@torch.inference_mode()
def test_pictures_go_through_the_vae_a_few_at_a_time(
    name: str, network_of: Callable[[str], Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, taken = network_of(name), list[int]()
    latents = noise_for(network, 5)
    together = network.decode(latents)
    embedded = network.embed(together)

    def counted(method: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        def call(x: torch.Tensor) -> torch.Tensor:
            taken.append(len(x))
            return method(x)

        return call

    monkeypatch.setattr("service.models.pipelines.pipeline.VAE_PIXELS", 2 * SIZE[0] * SIZE[1])
    monkeypatch.setattr(network, "from_latents", counted(network.from_latents))
    monkeypatch.setattr(network, "to_latents", counted(network.to_latents))
    assert (network.decode(latents).int() - together.int()).abs().max() <= 1
    assert (network.embed(together) - embedded).norm() < 1e-5 * embedded.norm()
    assert taken == [2, 2, 1, 2, 2, 1]
