"""Scenes with captions for a training run, drawn between its steps or by processes ahead of them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset

from service.models.scenes import Scene
from service.training.caption_tokenizer import encode_captions
from service.training.exact_denoiser import ExactScenes
from service.training.scenes import draw_scenes
from service.training.shapes_objective import SceneCaptions, TrainingBatch
from service.training.trajectories import PATH_SALT

Batch = TypeVar("Batch")


def vary_scene(scene: Scene, choice: float) -> Scene:
    """What people tell of it: in one case of 16 all but the background, in one of 16 all but the sizes."""
    if choice < 1 / 16:
        return replace(scene, background=None)
    if choice < 2 / 16:
        return replace(scene, objects=tuple(replace(item, size=None) for item in scene.objects))
    return scene


def draw_training_batch(tokenizer: Tokenizer, seed: tuple[int, ...], count: int) -> TrainingBatch:
    """Fresh scenes with captions that are not held out; the same for the same seed."""
    scenes = draw_scenes(seed, count)
    choices = np.random.default_rng((*seed, 1)).random(count)
    told = [vary_scene(scene, choice) for scene, choice in zip(scenes.scenes, choices, strict=True)]
    text = encode_captions(tokenizer, [*(scene.caption for scene in told), ""])
    return TrainingBatch(text[:-1], text[-1:].repeat(count, 1), ExactScenes.of(told), scenes.images)


class TrainingScenes(Dataset[TrainingBatch]):
    """Of each step, what the velocity learns from: `rows(step)` scenes."""

    def __init__(self, tokenizer: Tokenizer, seed: int, rows: Callable[[int], int]) -> None:
        self._tokenizer, self._seed, self._rows = tokenizer, seed, rows

    def __getitem__(self, step: int) -> TrainingBatch:
        return draw_training_batch(self._tokenizer, (self._seed, step), self._rows(step))


class PathCaptions:
    """Captions of paths n, n + 1, ..., n + count - 1, with their scenes. Those that follow, as many, are drawn ahead."""

    def __init__(self, tokenizer: Tokenizer, seed: int, workers: int, device: torch.device) -> None:
        self._tokenizer, self._seed, self._workers, self._device = tokenizer, seed, workers, device
        self._next: tuple[int, int] | None = None
        self._ahead: Iterator[SceneCaptions] = iter(())

    def __call__(self, first: int, count: int) -> SceneCaptions:
        if self._next != (first, count):
            batches = _PathBatches(self._tokenizer, self._seed, count)
            self._ahead = drawn_ahead(batches, range(first, first + PATH_SALT, count), self._workers, self._device)
        self._next = first + count, count
        return next(self._ahead)


class _PathBatches(Dataset[SceneCaptions]):
    def __init__(self, tokenizer: Tokenizer, seed: int, count: int) -> None:
        self._tokenizer, self._seed, self._count = tokenizer, seed, count

    def __getitem__(self, first: int) -> SceneCaptions:
        batch = draw_training_batch(self._tokenizer, (self._seed, PATH_SALT + first), self._count)
        return SceneCaptions(batch.text, batch.empty, batch.scenes)


def drawn_ahead(dataset: Dataset[Batch], indices: Sequence[int], workers: int, device: torch.device) -> Iterator[Batch]:
    """Its batches in this order, drawn by so many processes ahead of time, or without any as they are asked for."""
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            sampler=indices,
            num_workers=workers,
            worker_init_fn=_leave_signals_to_the_run,
            pin_memory=device.type == "cuda",
        )
    )


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C reaches the whole group: the run saves and ends, and its workers with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
