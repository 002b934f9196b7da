"""Draws captioned scenes of coloured shapes: unlimited, seeded 32x32 pictures with the sentences that describe them.

Boxes begin at multiples of `CELL` pixels, so that few different pictures need to be seen before shapes come out sharp.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.models.scenes import (
    BACKGROUNDS,
    COLOURS,
    IMAGE_SIZE,
    MAX_OBJECTS,
    MIN_OFFSET,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    relation_holds,
    shape_template,
)

CELL = 4
OBJECT_COUNT_WEIGHTS = (0.15, 0.35, 0.5)
HELD_OUT_EVERY = 20

_COLOUR_NAMES, _BACKGROUND_NAMES, _SIZE_NAMES = tuple(COLOURS), tuple(BACKGROUNDS), tuple(SIZES)


@dataclass(frozen=True)
class SceneBatch:
    """Scenes with their pictures: `images` is float32 [N, 3, 32, 32] in [-1, 1]."""

    scenes: tuple[Scene, ...]
    images: Tensor


def is_held_out(caption: str) -> bool:
    """Whether training never draws this caption: one in `HELD_OUT_EVERY`, by CRC-32 of the canonical sentence."""
    return zlib.crc32(caption.encode()) % HELD_OUT_EVERY == 0


def _layouts(rng: np.random.Generator, sides: np.ndarray) -> np.ndarray:
    """Corners [N, 3, 2] (x, y) of boxes with `sides` [N, 3], inside the picture and apart; side 0 is no box."""
    corners = np.zeros((*sides.shape, 2), dtype=np.int64)
    open_rows = np.arange(len(sides))
    proposals = 24
    while len(open_rows):
        side = sides[open_rows, None, :, None]
        places = (IMAGE_SIZE - side) // CELL + 1
        proposed = CELL * rng.integers(0, places, size=(len(open_rows), proposals, MAX_OBJECTS, 2))
        valid = np.ones(proposed.shape[:2], dtype=bool)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            ahead = proposed[:, :, j] - proposed[:, :, i]
            gap = np.maximum(ahead - side[:, :, i], -ahead - side[:, :, j]).max(-1)
            absent = (side[:, :, i, 0] == 0) | (side[:, :, j, 0] == 0)
            valid &= absent | (gap >= 1)
        found = valid.any(1)
        rows = open_rows[found]
        corners[rows] = proposed[found, valid[found].argmax(1)]
        open_rows = open_rows[~found]
    return corners


def _draw(rng: np.random.Generator, count: int) -> Iterator[tuple[Scene, np.ndarray]]:
    """Scenes with the corners [objects, 2] of their objects, held out or not."""
    numbers = rng.choice(MAX_OBJECTS, size=count, p=OBJECT_COUNT_WEIGHTS) + 1
    colours = rng.permuted(np.tile(np.arange(len(COLOURS)), (count, 1)), axis=1)[:, :MAX_OBJECTS]
    shapes = rng.integers(len(SHAPES), size=(count, MAX_OBJECTS))
    sizes = rng.integers(len(SIZES), size=(count, MAX_OBJECTS))
    backgrounds = rng.integers(len(BACKGROUNDS), size=count)
    sides = np.array(list(SIZES.values()))[sizes] * (np.arange(MAX_OBJECTS) < numbers[:, None])
    corners = _layouts(rng, sides)
    centres = corners + sides[..., None] / 2
    choice = rng.random((count, MAX_OBJECTS - 1))
    for n in range(count):
        number = int(numbers[n])
        relations = []
        for k in range(number - 1):
            pair = tuple(centres[n, k]), tuple(centres[n, k + 1])
            holding = [relation for relation in RELATIONS if relation_holds(relation, *pair, MIN_OFFSET)]
            relations.append(holding[int(choice[n, k] * len(holding))])
        objects = tuple(
            SceneObject(_COLOUR_NAMES[colours[n, k]], SHAPES[shapes[n, k]], _SIZE_NAMES[sizes[n, k]]) for k in range(number)
        )
        yield Scene(objects, tuple(relations), _BACKGROUND_NAMES[backgrounds[n]]), corners[n, :number]


def render(scene: Scene, corners: np.ndarray) -> np.ndarray:
    """float32 picture [32, 32, 3] in 0 to 255 of a fully specified scene; `corners` [objects, 2] are (x, y)."""
    if scene.background is None or any(item.size is None for item in scene.objects):
        raise ValueError("a scene must name its background and every size to be drawn")
    picture = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    picture[:] = BACKGROUNDS[scene.background]
    for item, (x, y) in zip(scene.objects, corners, strict=True):
        coverage = shape_template(item.shape, str(item.size))[..., None]
        region = picture[y : y + len(coverage), x : x + len(coverage)]
        region += coverage * (np.array(COLOURS[item.colour], dtype=np.float32) - region)
    return picture


def draw_scenes(seed: int | tuple[int, ...], count: int, *, held_out: bool = False) -> SceneBatch:
    """`count` scenes and pictures, the same for the same seed, from the held-out captions or from the others."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    pictures = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    while len(scenes) < count:
        for scene, corners in _draw(rng, count):
            if len(scenes) < count and is_held_out(scene.caption) == held_out:
                pictures[len(scenes)] = render(scene, corners)
                scenes.append(scene)
    images = torch.from_numpy(pictures / 127.5 - 1.0).permute(0, 3, 1, 2).contiguous()
    return SceneBatch(tuple(scenes), images)
