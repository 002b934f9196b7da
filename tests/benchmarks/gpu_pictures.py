"""Pictures of a class-conditional transformer: mixed samplers together in Stride's engine, and in diffusers' own pipeline."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from service.engine.assembly import build_engine
from service.engine.messages import Done, Failed, ImageWork, Submit
from service.settings import Settings
from tests.benchmarks.contestant import Unavailable, told
from tests.benchmarks.gpu_clock import idle_share


@dataclass(frozen=True)
class DitShape:
    """diffusers' DiT over latents of `side` x `side`, and the VAE behind it."""

    side: int
    layers: int
    heads: int
    head_dim: int
    vae: tuple[int, ...]
    groups: int

    @property
    def pixels(self) -> int:
        return self.side * 2 ** (len(self.vae) - 1)


PICTURES = {
    False: {"DiT-XL/2": DitShape(32, 28, 16, 72, (128, 256, 512, 512), 32)},
    True: {"DiT toy": DitShape(4, 2, 2, 16, (8, 8), 4)},
}
SAMPLERS = {"ddim": "DDIMScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler", "ddpm": "DDPMScheduler"}
GUIDANCE = 4.0
HEADER = (
    "| model | pictures | steps | Stride pictures/s | GPU idle | diffusers, a batch a sampler, pictures/s | times "
    "| diffusers, one by one, pictures/s | times |\n|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Job:
    label: int
    sampler: str
    steps: int


def write_dit_pipeline(folder: Path, shape: DitShape, seed: int = 0) -> Path:
    """A DiTPipeline as diffusers saves it, with random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(seed)
    network = DiTTransformer2DModel(
        num_attention_heads=shape.heads, attention_head_dim=shape.head_dim, in_channels=4, out_channels=8,
        num_layers=shape.layers, sample_size=shape.side, num_embeds_ada_norm=1000,
    )  # fmt: skip
    blocks = len(shape.vae)
    vae = AutoencoderKL(
        block_out_channels=shape.vae, down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks, layers_per_block=2, norm_num_groups=shape.groups, latent_channels=4,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, timestep_spacing="trailing")
    DiTPipeline(transformer=network.bfloat16(), vae=vae.bfloat16(), scheduler=scheduler).save_pretrained(folder)
    return folder


class Pictures:
    """Stride's engine in this process."""

    def __init__(self, folder: Path, shape: DitShape, device: str, together: int) -> None:
        models = [f"dit={folder},dtype=bfloat16"]
        settings = Settings(models=models, device=device, max_running=together, row_budget=2 * together)
        self._engine, self._pixels, self._asked = build_engine(settings), shape.pixels, 0

    def run(self, jobs: Sequence[Job]) -> float:
        """Seconds for all of them at once. Raises Unavailable when one fails."""
        began = time.perf_counter()
        for job in jobs:
            self._asked += 1
            work = ImageWork(str(job.label), self._pixels, self._pixels)
            parameters: dict[str, Any] = {"steps": job.steps, "guidance": GUIDANCE}
            submit = Submit(f"p{self._asked}", "dit", job.sampler, parameters, self._asked, work, 0.0)
            for event in self._engine.take(submit):
                raise Unavailable(str(event))
        done = 0
        while self._engine.has_work:
            for event in self._engine.tick():
                if isinstance(event, Failed):
                    raise Unavailable(event.message)
                done += isinstance(event, Done)
        assert done == len(jobs)
        return time.perf_counter() - began


class Diffusers:
    def __init__(self, folder: Path, device: str) -> None:
        import diffusers

        self._library, self._device = diffusers, device
        self._pipeline = diffusers.DiTPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._config = self._pipeline.scheduler.config

    def run(self, jobs: Sequence[Job], batched: bool) -> float:
        """Seconds for all: those of one sampler and number of steps in a batch, or one after another."""
        groups: dict[object, list[Job]] = {}
        for i, job in enumerate(jobs):
            groups.setdefault((job.sampler, job.steps) if batched else i, []).append(job)
        began = time.perf_counter()
        for group in groups.values():
            first = group[0]
            self._pipeline.scheduler = getattr(self._library, SAMPLERS[first.sampler]).from_config(self._config)
            self._pipeline([job.label for job in group], guidance_scale=GUIDANCE, num_inference_steps=first.steps)
        return time.perf_counter() - began


def picture_report(name: str, shape: DitShape, device: torch.device, folder: Path, small: bool) -> Iterator[str]:
    count, steps = (3, 2) if small else (48, 20)
    jobs = [Job(17 * i % 1000, list(SAMPLERS)[i % len(SAMPLERS)], steps) for i in range(count)]
    write_dit_pipeline(folder, shape)
    ours = Pictures(folder, shape, str(device), count)
    ours.run(jobs)
    took, idle = ours.run(jobs), idle_share(partial(ours.run, jobs), device)
    try:
        theirs = Diffusers(folder, str(device))
        theirs.run(jobs, batched=True)
        batched, alone = theirs.run(jobs, batched=True), theirs.run(jobs, batched=False)
    except Exception as error:  # what was measured of ours is told all the same
        yield f"- {name}, diffusers did not run: {told(error)}"
        batched = alone = math.nan
    yield ""
    yield f"Pictures of {shape.pixels} pixels, guidance {GUIDANCE}, samplers {', '.join(SAMPLERS)} in turn, bfloat16."
    yield ""
    yield HEADER
    cells = [name, str(count), str(steps), f"{count / took:.2f}", idle]
    cells += [f"{count / batched:.2f}", f"{batched / took:.2f}", f"{count / alone:.2f}", f"{alone / took:.2f}"]
    yield "| " + " | ".join(cells) + " |"
