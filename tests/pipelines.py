"""Pictures of a network by a plain loop over a sampler's table, and the same by diffusers' own pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from kernels.sampler_update import sampler_update
from service.models.latent_network import Condition, LatentNetwork
from service.models.pipelines.folder import load_pipeline
from service.models.pipelines.packing import patchify, sequence
from service.models.pipelines.pipeline import Pipeline
from service.procedures.registry import PROCEDURES
from service.procedures.tables import SamplerTable
from tests.pipeline_checkpoints.flux import write_flux, write_flux2_klein
from tests.pipeline_checkpoints.qwen_image import write_qwen_image
from tests.pipeline_checkpoints.stable_diffusion_3 import write_stable_diffusion_3
from tests.pipeline_checkpoints.z_image import write_z_image

SIZE = (48, 32)
STEPS = 3


@dataclass(frozen=True)
class Family:
    """How a small pipeline is written, and how diffusers' own is asked for what a request asks for.

    guidance: the scale in our words. scale: the pipeline's arguments for it. handed, seen: our latents in the shape in which
    the pipeline takes them, and in which its callback has them. absent: components that the folder lacks.
    """

    write: Callable[[Path], Path]
    guidance: float
    scale: Callable[[float], Mapping[str, Any]]
    negative: bool = True
    handed: Callable[[Tensor], Tensor] = field(default=lambda x: x)
    seen: Callable[[Tensor], Tensor] = field(default=lambda x: x)
    absent: tuple[str, ...] = ()

    def reference(self, folder: Path) -> Any:
        """diffusers' own pipeline."""
        return DiffusionPipeline.from_pretrained(folder, **dict.fromkeys(self.absent))


def packed(x: Tensor) -> Tensor:
    return sequence(patchify(x))


def named(name: str, less: float = 0.0) -> Callable[[float], Mapping[str, Any]]:
    return lambda scale: {name: scale - less}


FAMILIES = {
    "stable_diffusion_3": Family(write_stable_diffusion_3, 3.0, named("guidance_scale")),
    "stable_diffusion_3_without_t5": Family(
        partial(write_stable_diffusion_3, t5=False), 3.0, named("guidance_scale"), absent=("text_encoder_3", "tokenizer_3")
    ),
    "flux_dev": Family(write_flux, 3.5, named("guidance_scale"), negative=False, handed=packed, seen=packed),
    "flux_schnell": Family(partial(write_flux, dev=False), 2.0, named("true_cfg_scale"), handed=packed, seen=packed),
    "flux2_klein": Family(write_flux2_klein, 4.0, named("guidance_scale"), negative=False, seen=sequence),
    "flux2_klein_distilled": Family(
        partial(write_flux2_klein, distilled=True), 1.0, named("guidance_scale"), negative=False, seen=sequence
    ),
    "qwen_image": Family(write_qwen_image, 4.0, named("true_cfg_scale"), handed=packed, seen=packed),
    "z_image": Family(write_z_image, 6.0, named("guidance_scale", less=1.0)),
    "z_image_turbo": Family(partial(write_z_image, shift=3.0), 1.0, named("guidance_scale", less=1.0)),
}


def load(folder: Path) -> Pipeline:
    """In float32 on the CPU."""
    return load_pipeline("tiny", folder, torch.float32, torch.device("cpu"))


def noise_for(network: LatentNetwork, rows: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    return torch.randn(rows, *network.latent_shape(*size), generator=torch.Generator().manual_seed(seed))


def table_for(network: LatentNetwork, size: tuple[int, int] = SIZE, **procedure: Any) -> SamplerTable:
    """The table of the network's default procedure, with other parameters where given."""
    chosen = {**network.default_procedure, **procedure}
    parameters = msgspec.convert({k: v for k, v in chosen.items() if k != "name"}, PROCEDURES[chosen["name"]].parameters)
    return parameters.table(network.noise, network.tokens(*size))


@torch.inference_mode()
def refine(
    network: LatentNetwork,
    table: SamplerTable,
    noise: Tensor,
    texts: Sequence[str],
    negatives: Sequence[str],
    guidance: float,
    fresh: Callable[[int], Tensor] | None = None,
    given: Tensor | None = None,
) -> list[Tensor]:
    """The latents [R, C, H, W] after every row of the table. `fresh`: the noise of a row that needs some; `given`: latents of
    pictures to start from."""
    conditions, without = network.encode(texts), network.encode(negatives, negative=True)
    x = table.start[1] * noise if given is None else table.start[0] * given + table.start[1] * noise
    h1, h2, states = torch.zeros_like(x), torch.zeros_like(x), list[Tensor]()
    for i in range(len(table)):
        f = guided(network, x, table.t[i], table.s[i], guidance, conditions, without)
        coefficients = torch.tensor([table.coefficients(i)] * len(x))
        x, h1, h2 = sampler_update(x, f, h1, h2, coefficients, fresh(i) if fresh and table.d[i] else None)
        states.append(x)
    return states


def guided(
    network: LatentNetwork, x: Tensor, t: float, s: float, guidance: float, texts: list[Condition], without: list[Condition]
) -> Tensor:
    rows = len(x)
    if guidance == 1.0 or network.guidance_input == "always":
        return network.evaluate(x, full(rows, t), full(rows, s), full(rows, guidance), texts, [()] * rows)
    both = network.evaluate(
        torch.cat([x, x]), full(2 * rows, t), full(2 * rows, s), full(2 * rows, 1.0), texts + without, [()] * (2 * rows)
    )
    return network.guide(both[:rows], both[rows:], full(rows, guidance))


def full(rows: int, value: float) -> Tensor:
    return torch.full((rows,), value)


def reference_pictures(
    pipeline: Any, family: Family, noise: Tensor | None, guidance: float, **arguments: Any
) -> tuple[list[Tensor], Tensor]:
    """The latents after every step of diffusers' pipeline, and its pictures, float [R, H, W, 3] of 0 to 255. Without `noise` it
    draws its own."""
    states: list[Tensor] = []

    def keep(pipeline: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        states.append(tensors["latents"].clone())
        return tensors

    pipeline.set_progress_bar_config(disable=True)
    if noise is not None:
        arguments["latents"] = family.handed(noise.clone())
    pictures = pipeline(output_type="np", callback_on_step_end=keep, **family.scale(guidance), **arguments).images
    return states, 255.0 * torch.from_numpy(pictures)
