"""What the contestants for pictures are asked for, and what is noted of each: Poisson arrivals of mixed requests."""

from __future__ import annotations

import platform
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

DEFAULT = ("dpmpp_2m", 14, 4.5)
"""Sampler, steps and guidance of those who ask for nothing special: half of all, in favour of whoever needs equals to batch."""
SAMPLERS = ("dpmpp_2m", "ddim", "euler")
STEPS = (8, 10, 20)
"""Divisors of the 1000 steps of training, where all of diffusers' schedulers go by the same times."""
GUIDANCE = (1.0, 3.0, 4.5, 7.0)
WORDS = ("the", "red", "small", "bright", "quiet", "old", "wooden", "harbour", "lantern", "winter", "cat", "boat", "of", "at")


@dataclass(frozen=True)
class Machine:
    """What all contestants compute with, and in which precision. `threads`: of the CPU."""

    threads: int
    device: torch.device
    dtype: torch.dtype

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        processor = f"{platform.processor() or platform.machine()}, {self.threads} threads"
        return f"{torch.cuda.get_device_name(self.device) if self.is_gpu else processor}, {self.precision}"


@dataclass(frozen=True)
class PictureJob:
    """Seconds from the start until it arrives, and what it asks for. Guidance 1 is none: one network row a step, else two."""

    arrives: float
    prompt: str
    negative: str
    seed: int
    sampler: str
    steps: int
    guidance: float

    @property
    def alike(self) -> tuple[str, int, float]:
        """What diffusers needs to have in common to draw several at once."""
        return self.sampler, self.steps, self.guidance

    @property
    def rows(self) -> int:
        """Network evaluations."""
        return self.steps * (2 if self.guidance > 1.0 else 1)


def picture_jobs(count: int, rate: float, seed: int, salt: str = "") -> list[PictureJob]:
    """Poisson arrivals at `rate` a second, all at once if it is 0. Only `rate` changes the times, and only `salt` the prompts,
    so that no run profits from texts that one before it had encoded."""
    clock, draw = random.Random(f"{seed} times"), random.Random(seed)
    jobs, now = list[PictureJob](), 0.0
    for number in range(count):
        now += clock.expovariate(rate) if rate else 0.0
        mixed = draw.choice(SAMPLERS), draw.choice(STEPS), draw.choice(GUIDANCE)
        sampler, steps, guidance = DEFAULT if number % 2 else mixed
        prompt = " ".join([*draw.choices(WORDS, k=draw.randrange(4, 14)), f"{salt}{number}"])
        negative = draw.choice(("", "", "", "blurry and dark"))
        jobs.append(PictureJob(now, prompt, negative, draw.randrange(2**31), sampler, steps, guidance))
    return jobs


@dataclass(frozen=True)
class Drawn:
    """When a picture was there, in seconds from the start, uint8 [H, W, 3], and how many were drawn with it."""

    finished: float
    picture: np.ndarray
    together: float = 1.0


@dataclass(frozen=True)
class Figures:
    """Of one contestant under one load. Latencies in seconds; `together`: pictures at once, on average."""

    images_per_second: float
    mean: float
    p99: float
    together: float


def figures(jobs: Sequence[PictureJob], finished: Sequence[float], together: float = 1.0) -> Figures:
    """`finished` in seconds from the start."""
    latencies = np.array([each - job.arrives for job, each in zip(jobs, finished, strict=True)])
    seconds = max(finished) - min(job.arrives for job in jobs)
    return Figures(len(jobs) / seconds, float(latencies.mean()), float(np.quantile(latencies, 0.99)), together)
