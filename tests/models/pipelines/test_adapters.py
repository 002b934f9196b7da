"""Adapters as diffusers and PEFT write them give the pictures that diffusers' own loading of them gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from service.models.pipelines.folder import load_pipeline
from service.models.pipelines.pipeline import Pipeline
from tests.adapters import random_adapter
from tests.asked_pictures import Asked, drawn, latents
from tests.pipeline_checkpoints.sana import write_sana
from tests.pipeline_checkpoints.stable_diffusion import write_stable_diffusion_xl

peft = pytest.importorskip("peft")

LAYERS = {"unet": ["to_q", "to_out.0", "conv1", "proj_in"], "transformer": ["to_k", "attn2.to_out.0", "conv_point"]}
BLOCK = {
    "unet": "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "transformer": "transformer_blocks.1.attn1.to_v",
}


@pytest.mark.parametrize("write", [write_stable_diffusion_xl, partial(write_sana, sprint=True)])
def test_files_that_diffusers_writes_and_reads_mean_the_same(write: Callable[[Path], Path], tmp_path: Path) -> None:
    """One by save_lora_weights with PEFT's alpha in its metadata, one as kohya does or without any alpha; and both at once."""
    folder = write(tmp_path / "model")
    reference = diffusers.DiffusionPipeline.from_pretrained(folder)
    plain = load_pipeline("tiny", folder, torch.float32, torch.device("cpu"))
    ink = written_by_diffusers(reference, plain.denoiser, tmp_path / "ink")
    kohya = plain.denoiser == "unet"
    oil = random_adapter(plain.transformer, [BLOCK[plain.denoiser]], seed=1, strength=0.5 if kohya else 1.0)
    named = ("lora_unet_", "kohya") if kohya else ("transformer.", "peft")
    files = {"ink": ink, "oil": oil.save(tmp_path / "oil.safetensors", *named, alphas=kohya)}
    network = load_pipeline("tiny", folder, torch.float32, torch.device("cpu"), files)

    reference = diffusers.DiffusionPipeline.from_pretrained(folder)
    reference.set_progress_bar_config(disable=True)
    for name, file in files.items():
        reference.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    pictures = []
    for scales in ((0.9, 0.0), (0.0, 1.5), (0.6, -0.8)):
        reference.set_adapters(list(files), list(scales))
        theirs = by_diffusers(reference, network)
        ours = picture(network, tuple(zip(files, scales, strict=True)))
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()
        pictures.append(ours)
    assert all((with_it - picture(plain, ())).norm() > 1e-3 * with_it.norm() for with_it in pictures)


def picture(network: Pipeline, adapters: tuple[tuple[str, float], ...]) -> Tensor:
    return latents(network, [Asked("a red fox", drawn(network, 3), {"steps": 2, "guidance": 2.0}, adapters=adapters)])[0]


def by_diffusers(pipeline: Any, network: Pipeline) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, *network.latent_shape(32, 32), generator=generator)
    arguments = {"use_resolution_binning": False} if network.denoiser == "transformer" else {}
    made = pipeline(
        "a red fox", latents=noise, num_inference_steps=2, guidance_scale=2.0, width=32, height=32, output_type="latent",
        generator=generator, **arguments,
    )  # fmt: skip
    return made.images[0]


def written_by_diffusers(pipeline: Any, denoiser: str, folder: Path) -> Path:
    network = getattr(pipeline, denoiser)
    layers = LAYERS[denoiser]
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=layers, alpha_pattern={layers[0]: 9}, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network.add_adapter(config, "default")
    written = {
        f"{denoiser}_lora_layers": peft.get_peft_model_state_dict(network, adapter_name="default"),
        f"{denoiser}_lora_adapter_metadata": network.peft_config["default"].to_dict(),
    }
    type(pipeline).save_lora_weights(folder, **written)
    return folder / "pytorch_lora_weights.safetensors"
