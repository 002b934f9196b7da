"""diffusers' own pipeline behind a queue: one request after another, or those that are alike in batches.

It is given every advantage that needs no engine: no HTTP, no image files, starting noise that is there before the clock runs.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kernels.philox import normal
from service.workers.purposes import INITIAL_NOISE
from tests.benchmarks.picture_jobs import Drawn, Machine, PictureJob

WORDS = 300
"""Tokens of a text, padding and all, as PixArt-Σ's pipeline has them by default."""
Draw = Callable[[Sequence[PictureJob]], Sequence[np.ndarray]]


@dataclass
class Queue:
    """Who draws together: requests that are alike with the one that waits longest, at most `batch` of them, as soon as there are
    so many or that one has waited for `patience` seconds. With a batch of 1 it is first come, first served."""

    batch: int
    patience: float
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    _waiting: list[int] = field(default_factory=list)

    def serve(self, jobs: Sequence[PictureJob], draw: Draw) -> list[Drawn]:
        """Jobs in the order of arrival."""
        ahead = deque(range(len(jobs)))
        drawn = dict[int, Drawn]()
        began = self.clock()
        while len(drawn) < len(jobs):
            now = self.clock() - began
            while ahead and jobs[ahead[0]].arrives <= now:
                self._waiting.append(ahead.popleft())
            events = [jobs[ahead[0]].arrives] if ahead else []
            if self._waiting:
                first = jobs[self._waiting[0]]
                chosen = [i for i in self._waiting if jobs[i].alike == first.alike][: self.batch]
                if len(chosen) == self.batch or now >= first.arrives + self.patience:
                    pictures = draw([jobs[i] for i in chosen])
                    finished = self.clock() - began
                    drawn |= {i: Drawn(finished, one, len(chosen)) for i, one in zip(chosen, pictures, strict=True)}
                    self._waiting = [i for i in self._waiting if i not in chosen]
                    continue
                events.append(first.arrives + self.patience)
            self.sleep(max(0.0, min(events) - now))
        return [drawn[i] for i in range(len(jobs))]


class Diffusers:
    """A pipeline of the library in this process. It pads texts to so many `words`."""

    def __init__(self, folder: Path, machine: Machine, words: int) -> None:
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PixArtSigmaPipeline

        torch.set_num_threads(machine.threads)
        self._machine, self._words = machine, words
        self._pipeline: Any = PixArtSigmaPipeline.from_pretrained(folder, dtype=machine.dtype, local_files_only=True)
        self._pipeline.to(machine.device)
        self._pipeline.set_progress_bar_config(disable=True)
        config = self._pipeline.scheduler.config
        self._schedulers = {
            "dpmpp_2m": DPMSolverMultistepScheduler.from_config(config),
            "ddim": DDIMScheduler.from_config(config, clip_sample=False),
            "euler": EulerDiscreteScheduler.from_config(config),
        }
        side = self._pipeline.transformer.config.sample_size
        self._shape = (self._pipeline.transformer.config.in_channels, side, side)

    def noise(self, job: PictureJob) -> torch.Tensor:
        """[C, H, W], that with which a request of this seed begins in Stride, in the network's precision."""
        seed = torch.tensor([job.seed])
        size = int(np.prod(self._shape))
        drawn = normal(seed, torch.zeros_like(seed), INITIAL_NOISE, size).view(self._shape)
        return drawn.to(self._machine.device, self._machine.dtype)

    def draw(self, noise: dict[int, torch.Tensor], jobs: Sequence[PictureJob]) -> Sequence[np.ndarray]:
        """One call of the pipeline for jobs that are alike; `noise` by seed."""
        self._pipeline.scheduler = self._schedulers[jobs[0].sampler]
        pictures = self._pipeline(
            prompt=[job.prompt for job in jobs],
            negative_prompt=[job.negative for job in jobs],
            num_inference_steps=jobs[0].steps,
            guidance_scale=jobs[0].guidance,
            latents=torch.stack([noise[job.seed] for job in jobs]),
            max_sequence_length=self._words,
            clean_caption=False,
            use_resolution_binning=False,
        ).images
        return [np.asarray(picture) for picture in pictures]

    def serve(self, jobs: Sequence[PictureJob], batch: int, patience: float) -> list[Drawn]:
        noise = {job.seed: self.noise(job) for job in jobs}
        return Queue(batch, patience).serve(jobs, partial(self.draw, noise))


class Peer:
    """Diffusers in a process of its own, which it has to itself as a server would."""

    def __init__(self, folder: Path, machine: Machine, words: int = WORDS) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, mp_context=spawn, initializer=_load, initargs=(folder, machine, words))

    def serve(self, jobs: Sequence[PictureJob], batch: int = 1, patience: float = 0.0) -> list[Drawn]:
        return self._process.submit(_serve, jobs, batch, patience).result()

    def close(self) -> None:
        self._process.shutdown()


_LOADED: list[Diffusers] = []


def _load(folder: Path, machine: Machine, words: int) -> None:
    _LOADED.append(Diffusers(folder, machine, words))


def _serve(jobs: Sequence[PictureJob], batch: int, patience: float) -> list[Drawn]:
    return _LOADED[0].serve(jobs, batch, patience)
