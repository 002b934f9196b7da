"""Pictures that start from others are those of diffusers' image-to-image pipelines."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from service.models.pipelines.pipeline import Pipeline
from tests.few import few
from tests.pipelines import FAMILIES, SIZE, noise_for, reference_pictures, refine, table_for

CLASSES = {
    "stable_diffusion_3": "StableDiffusion3Img2ImgPipeline",
    "flux_dev": "FluxImg2ImgPipeline",
    "qwen_image": "QwenImageImg2ImgPipeline",
    "z_image": "ZImageImg2ImgPipeline",
}
SEED = 11


@pytest.mark.parametrize(
    "name,strength",
    few(itertools.product(CLASSES, (0.6, 0.25)), *((name, 0.6) for name in CLASSES), ("stable_diffusion_3", 0.25)),
)
def test_pictures_from_pictures_are_those_of_diffusers_pipeline(
    name: str,
    strength: float,
    pipeline_folder: Callable[[str], Path],
    network_of: Callable[[str], Pipeline],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Theirs draws a latent of the picture; ours takes the likeliest, so that a seed says nothing about what is given.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    family, network, steps = FAMILIES[name], network_of(name), 4
    pixels = torch.randint(0, 256, (SIZE[1], SIZE[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    pipeline = getattr(diffusers, CLASSES[name])(**family.reference(pipeline_folder(name)).components)
    negative = {"negative_prompt": "blurred"} if family.negative else {}
    expected, pictures = reference_pictures(
        pipeline, family, None, family.guidance, prompt="a red circle", image=Image.fromarray(pixels.numpy()),
        width=SIZE[0], height=SIZE[1], strength=strength, num_inference_steps=steps,
        generator=torch.Generator().manual_seed(SEED), **negative,
    )  # fmt: skip

    table = table_for(network, steps=steps, guidance=family.guidance, strength=strength)
    given = network.embed(pixels[None])
    negatives = ["blurred" if family.negative else ""]
    states = refine(network, table, noise_for(network, 1, seed=SEED), ["a red circle"], negatives, family.guidance, given=given)
    assert len(states) == len(expected) == (3 if strength == 0.6 else 1)
    for ours, theirs in zip(states, expected, strict=True):
        assert (family.seen(ours) - theirs).norm() < 1e-4 * theirs.norm()
    assert (network.decode(states[-1]).float() - pictures).abs().max() <= 1.0
