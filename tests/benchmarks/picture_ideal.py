"""What a model's evaluations, texts and pictures cost in full batches: how fast pictures could be drawn at best."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from service.models.pipelines.folder import load_pipeline
from tests.benchmarks.picture_jobs import Machine, PictureJob


@dataclass(frozen=True)
class Ideal:
    """Seconds of one network evaluation, one text and one picture, each in the batch that suits it best; `alone`, of two rows
    as one guided request has them: seconds of an evaluation."""

    row: float
    text: float
    picture: float
    alone: float
    best_rows: int

    def images_per_second(self, jobs: Sequence[PictureJob]) -> float:
        """With every row in a full batch and nothing else to do. A text of guidance's other side is encoded once in all."""
        rows = sum(job.rows for job in jobs)
        return len(jobs) / (rows * self.row + len(jobs) * (self.text + self.picture))


def measure_ideal(folder: Path, machine: Machine, jobs: Sequence[PictureJob]) -> Ideal:
    """In a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure, folder, machine, jobs).result()


@torch.inference_mode()
def _measure(folder: Path, machine: Machine, jobs: Sequence[PictureJob]) -> Ideal:
    torch.set_num_threads(machine.threads)
    device = machine.device
    # A GPU takes more to be full.
    batches = (2, 4, 8, 16, 32, 64) if machine.is_gpu else (2, 4, 8, 16, 32)
    most_texts, pictures = (32, (1, 4, 8, 16, 32)) if machine.is_gpu else (8, (1, 4))
    took = partial(fastest, wait=partial(torch.cuda.synchronize, device) if machine.is_gpu else None)
    network = load_pipeline("ideal", folder, machine.dtype, device)
    texts = [job.prompt for job in jobs]
    width, height = network.sizes.default
    latents = torch.randn(max(batches), *network.latent_shape(width, height), device=device)
    conditions = network.encode([texts[i % len(texts)] for i in range(max(batches))])
    times, ones = torch.full((max(batches),), 500.0, device=device), torch.ones(max(batches), device=device)

    def evaluate(n: int) -> None:
        network.evaluate(latents[:n], times[:n], times[:n], ones[:n], conditions[:n], [()] * n)

    rows = {n: took(partial(evaluate, n)) / n for n in batches}
    best = min(rows, key=lambda n: rows[n])
    text = min(took(partial(network.encode, texts[:n])) / n for n in (1, min(most_texts, len(texts))))
    picture = min(took(partial(network.decode, latents[:n])) / n for n in pictures)
    return Ideal(rows[best], text, picture, rows[min(batches)], best)


def fastest(call: Callable[[], object], seconds: float = 0.5, wait: Callable[[], object] | None = None) -> float:
    """The shortest of at least three calls that are measured for `seconds` together. `wait`: until the device has done them."""
    wait = wait or (lambda: None)
    call()
    best, calls, began = float("inf"), 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - began < seconds:
        wait()
        start = time.perf_counter()
        call()
        wait()
        best, calls = min(best, time.perf_counter() - start), calls + 1
    return best
