"""Adapters as diffusers and PEFT write them give the pictures that diffusers' own loading of them gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from service.models.errors import ModelError
from service.models.pipelines.folder import load_pipeline
from service.models.pipelines.pipeline import Pipeline
from tests.adapters import random_adapter
from tests.asked_pictures import Asked, drawn, latents
from tests.pipeline_checkpoints.sana import write_sana
from tests.pipeline_checkpoints.stable_diffusion import write_stable_diffusion_xl

peft = pytest.importorskip("peft")

LAYERS = {"unet": ["to_q", "to_out.0", "conv1", "proj_in"], "transformer": ["to_k", "attn2.to_out.0", "conv_point"]}
ENCODERS = {"text_encoder": ["q_proj", "fc2"], "text_encoder_2": ["out_proj", "fc1"]}
BLOCK = {
    "unet": "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "transformer": "transformer_blocks.1.attn1.to_v",
}
PIPELINES = [write_stable_diffusion_xl, partial(write_sana, sprint=True)]


@pytest.mark.parametrize("write", PIPELINES)
def test_what_diffusers_writes_of_adapted_networks_makes_their_pictures(write: Callable[[Path], Path], tmp_path: Path) -> None:
    """Adapters of PEFT in the denoiser, and in Stable Diffusion XL's text encoders, written by save_lora_weights."""
    folder = write(tmp_path / "model")
    reference = diffusers.DiffusionPipeline.from_pretrained(folder)
    plain = load(folder)
    file = written_by_diffusers(reference, plain.denoiser, tmp_path / "ink")
    network = load(folder, {"ink": file})
    assert network.text_adapters == (("ink",) if plain.denoiser == "unet" else ())
    ours, theirs = picture(network, (("ink", 1.0),)), by_diffusers(reference, network)
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()
    assert (ours - picture(plain, ())).norm() > 1e-2 * ours.norm()


@pytest.mark.parametrize("write", PIPELINES)
def test_files_mean_what_diffusers_reads_from_them(write: Callable[[Path], Path], tmp_path: Path) -> None:
    """As kohya's scripts write them, with alphas, or as PEFT does, without; one, the other, and both at once."""
    folder = write(tmp_path / "model")
    plain = load(folder)
    kohya = plain.denoiser == "unet"
    files = {}
    for seed, name in enumerate(("ink", "oil")):
        adapter = random_adapter(plain.transformer, [BLOCK[plain.denoiser]], seed=seed, strength=0.5 if kohya else 1.0)
        named = ("lora_unet_", "kohya") if kohya else ("transformer.", "peft")
        files[name] = adapter.save(tmp_path / f"{name}.safetensors", *named, alphas=kohya)
    network = load(folder, files)
    reference = diffusers.DiffusionPipeline.from_pretrained(folder)
    for name, file in files.items():
        reference.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    for scales in ((0.9, 0.0), (0.6, -0.8)):
        reference.set_adapters(list(files), list(scales))
        ours, theirs = picture(network, tuple(zip(files, scales, strict=True))), by_diffusers(reference, network)
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()
        assert (ours - picture(plain, ())).norm() > 1e-4 * ours.norm()


def test_an_adapter_that_is_not_there_is_missed_before_any_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_stable_diffusion_xl(tmp_path / "model")
    monkeypatch.setattr("service.models.pipelines.folder.load_network", lambda *_: pytest.fail("weights are read"))
    with pytest.raises(ModelError, match=r"lora ink: there is no file .*ink\.safetensors"):
        load(folder, {"ink": tmp_path / "ink.safetensors"})


def load(folder: Path, files: Mapping[str, Path] | None = None) -> Pipeline:
    return load_pipeline("tiny", folder, torch.float32, torch.device("cpu"), files or {})


def picture(network: Pipeline, adapters: tuple[tuple[str, float], ...]) -> Tensor:
    return latents(network, [Asked("a red fox", drawn(network, 3), {"steps": 2, "guidance": 2.0}, adapters=adapters)])[0]


def by_diffusers(pipeline: Any, network: Pipeline) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, *network.latent_shape(32, 32), generator=generator)
    arguments = {"use_resolution_binning": False} if network.denoiser == "transformer" else {}
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        "a red fox", latents=noise, num_inference_steps=2, guidance_scale=2.0, width=32, height=32, output_type="latent",
        generator=generator, **arguments,
    )  # fmt: skip
    return made.images[0]


def written_by_diffusers(pipeline: Any, denoiser: str, folder: Path) -> Path:
    """An adapter of the denoiser, and of Stable Diffusion XL's text encoders, each with ranks and alphas of its own."""
    written = {}
    for rank, (name, layers) in enumerate({denoiser: LAYERS[denoiser], **(ENCODERS if denoiser == "unet" else {})}.items(), 2):
        network, alphas = getattr(pipeline, name), {layers[0]: 9}
        config = peft.LoraConfig(r=rank, lora_alpha=5, target_modules=layers, alpha_pattern=alphas, init_lora_weights=False)
        with torch.random.fork_rng():
            torch.manual_seed(rank)
            peft.inject_adapter_in_model(config, network)
        network.peft_config = {"default": config}
        written[f"{name}_lora_layers"] = peft.get_peft_model_state_dict(network)
        written[f"{name}_lora_adapter_metadata"] = config.to_dict()
    type(pipeline).save_lora_weights(folder, **written)
    return folder / "pytorch_lora_weights.safetensors"
