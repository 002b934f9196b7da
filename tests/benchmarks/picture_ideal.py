"""What a model's evaluations, texts and pictures cost in full batches: how fast pictures could be drawn at best."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from service.models.pipelines.folder import load_pipeline
from tests.benchmarks.picture_jobs import PictureJob


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


def measure_ideal(folder: Path, threads: int, jobs: Sequence[PictureJob], batches: Sequence[int] = (2, 4, 8, 16, 32)) -> Ideal:
    """In a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure, folder, threads, jobs, batches).result()


@torch.inference_mode()
def _measure(folder: Path, threads: int, jobs: Sequence[PictureJob], batches: Sequence[int]) -> Ideal:
    torch.set_num_threads(threads)
    network = load_pipeline("ideal", folder, torch.float32, torch.device("cpu"))
    texts = [job.prompt for job in jobs]
    width, height = network.sizes.default
    latents = torch.randn(max(batches), *network.latent_shape(width, height))
    conditions = network.encode([texts[i % len(texts)] for i in range(max(batches))])
    times, ones = torch.full((max(batches),), 500.0), torch.ones(max(batches))

    def evaluate(n: int) -> None:
        network.evaluate(latents[:n], times[:n], times[:n], ones[:n], conditions[:n], [()] * n)

    rows = {n: fastest(lambda n=n: evaluate(n)) / n for n in batches}
    best = min(rows, key=lambda n: rows[n])
    text = min(fastest(lambda n=n: network.encode(texts[:n])) / n for n in (1, min(8, len(texts))))
    picture = min(fastest(lambda n=n: network.decode(latents[:n])) / n for n in (1, 4))
    return Ideal(rows[best], text, picture, rows[min(batches)], best)


def fastest(call: Callable[[], object], seconds: float = 0.5) -> float:
    """The shortest of at least three calls that are measured for `seconds` together."""
    call()
    best, calls, began = float("inf"), 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call()
        best, calls = min(best, time.perf_counter() - start), calls + 1
    return best
