"""Folders of class-conditional models: ours (a config.json that says what the published checkpoint beside it is), and those
of diffusers' DiTPipeline.

A folder of ours holds `config.json` (`DitConfig`), `model.safetensors` with the published tensors, `vae/`, an AutoencoderKL as
diffusers saves it, unless the network makes pixels, and, for layout dit, `scheduler/scheduler_config.json` where its noise is
not DiT's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from service.models.class_conditional import FLOWS, ClassConditional
from service.models.dit import DiT, DitConfig
from service.models.dit_loading import load_diffusers_dit, load_dit
from service.models.errors import ModelError
from service.models.picture_codec import AutoencoderCodec, PictureCodec, PixelCodec
from service.models.pipelines.components import load_network
from service.models.pipelines.index import INDEX, ModelIndex, Part, read_object
from service.procedures.noise import NoiseProcess, from_scheduler_config

PIPELINE = "DiTPipeline"
PARTS = {
    "transformer": Part("diffusers", ("DiTTransformer2DModel", "Transformer2DModel")),
    "vae": Part("diffusers", ("AutoencoderKL",)),
}

DIT_SCHEDULER = {
    "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
    "clip_sample": False,
}  # fmt: skip
"""The noise of DiT's training (arXiv 2212.09748, sec. 3.1 and 4)."""

DIT_STEPS = {"steps": 50, "guidance": 4.0}
"""What DiT's pipeline does unless told otherwise."""


def load_class_conditional(
    name: str, folder: Path, json: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> ClassConditional:
    """A folder of ours, whose config.json is `json`. Raises ModelError for a field that is wrong, files that are missing or
    broken, tensors that do not fit, and noise that is not known."""
    try:
        config = DitConfig.from_json(json)
    except ValueError as error:
        raise ModelError(f"config.json: {error}") from error
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file() and config.layout != "dit":
        raise ModelError(f"{scheduler}: layout {config.layout} is a flow and has no scheduler of its own")
    codec: PictureCodec = PixelCodec()
    if (folder / "vae").is_dir():
        codec = AutoencoderCodec(load_network(folder / "vae", PARTS["vae"], "AutoencoderKL", dtype, device))
    network = load_dit(name, folder, config, dtype, device)
    if config.layout != "dit":
        noise, procedure = FLOWS[config.layout]
        low, high = config.guidance_range
        known = {"guidance": min(max(procedure["guidance"], low), high)} if config.guidance_input else {}
        return _joined(network, codec, noise, {**procedure, **known})
    return _joined(network, codec, *_noise(read_object(scheduler) if scheduler.is_file() else DIT_SCHEDULER))


def load_dit_pipeline(name: str, folder: Path, dtype: torch.dtype, device: torch.device) -> ClassConditional:
    """The folder of a DiTPipeline. Raises ModelError as above."""
    index = ModelIndex.read(folder)
    if index.class_name != PIPELINE:
        raise ModelError(f"{INDEX}: {index.class_name} is not a {PIPELINE}")
    classes = index.chosen(PARTS)
    labels = _labels(index.settings.get("id2label"))
    codec = AutoencoderCodec(load_network(folder / "vae", PARTS["vae"], classes["vae"], dtype, device))
    transformer = folder / "transformer"
    network = load_diffusers_dit(name, transformer, read_object(transformer / "config.json"), labels, dtype, device)
    return _joined(network, codec, *_noise(read_object(folder / "scheduler" / "scheduler_config.json")))


def _joined(network: DiT, codec: PictureCodec, noise: NoiseProcess, procedure: Mapping[str, Any]) -> ClassConditional:
    try:
        return ClassConditional(network, codec, noise, procedure)
    except ValueError as error:
        raise ModelError(str(error)) from error


def _noise(scheduler: Mapping[str, Any]) -> tuple[NoiseProcess, Mapping[str, Any]]:
    try:
        noise, procedure = from_scheduler_config(scheduler)
    except ValueError as error:
        raise ModelError(f"scheduler_config.json: {error}") from error
    if noise.kind != "vp" or noise.prediction != "noise":
        raise ModelError(f"scheduler_config.json: DiT predicts the noise of a diffusion, not {noise.prediction} ({noise.kind})")
    return noise, {**procedure, **DIT_STEPS}


def _labels(id2label: Any) -> dict[int, str]:
    """Raises ModelError for names that are not an object from numbers to texts."""
    if id2label is None:
        return {}
    if not isinstance(id2label, dict) or not all(
        str(key).isdecimal() and isinstance(text, str) for key, text in id2label.items()
    ):
        raise ModelError(f"{INDEX}: id2label must be an object from class numbers to names")
    return {int(key): text for key, text in id2label.items()}
