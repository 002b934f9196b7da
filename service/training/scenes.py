"""Captioned scenes of coloured shapes: unlimited, seeded 32x32 pictures and the sentences that describe them.

A scene has one to three objects of distinct colours on a plain background. Neighbours in the caption are tied by a
relation: relation k holds between object k and object k+1, as a difference of centres of at least `MIN_OFFSET` pixels.
Boxes begin at multiples of `CELL` pixels, so that few different pictures need to be seen before shapes come out sharp.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

IMAGE_SIZE = 32
CELL = 4
MIN_OFFSET = 6
MAX_OBJECTS = 3
OBJECT_COUNT_WEIGHTS = (0.15, 0.35, 0.5)
HELD_OUT_EVERY = 20

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 35),
    "green": (30, 165, 50),
    "blue": (35, 65, 235),
    "yellow": (250, 215, 30),
    "purple": (150, 40, 190),
    "cyan": (40, 210, 230),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}
SIZES: dict[str, int] = {"large": 11, "small": 7}
SHAPES = ("circle", "square", "triangle")
RELATIONS = ("left of", "right of", "above", "below")

_COLOUR_NAMES, _BACKGROUND_NAMES, _SIZE_NAMES = tuple(COLOURS), tuple(BACKGROUNDS), tuple(SIZES)


@dataclass(frozen=True)
class SceneObject:
    """One object of a caption; `size` None means that any size will do."""

    colour: str
    shape: str
    size: str | None


@dataclass(frozen=True)
class Scene:
    """What a caption says: `relations[k]` holds between objects k and k+1; `background` None means any."""

    objects: tuple[SceneObject, ...]
    relations: tuple[str, ...]
    background: str | None

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= MAX_OBJECTS:
            raise ValueError(f"a scene has 1 to {MAX_OBJECTS} objects, not {len(self.objects)}")
        if len(self.relations) != len(self.objects) - 1:
            raise ValueError("a scene needs one relation between each two neighbouring objects")

    @property
    def caption(self) -> str:
        """The canonical sentence, e.g. `a large red circle above a small blue square on a black background`."""
        words = [_object_words(self.objects[0])]
        for relation, item in zip(self.relations, self.objects[1:], strict=True):
            words += [relation, _object_words(item)]
        if self.background is not None:
            words.append(f"on a {self.background} background")
        return " ".join(words)


@dataclass(frozen=True)
class SceneBatch:
    """Scenes with their pictures: `images` is float32 [N, 3, 32, 32] in [-1, 1]."""

    scenes: tuple[Scene, ...]
    images: Tensor


def _object_words(item: SceneObject) -> str:
    return " ".join(word for word in ("a", item.size, item.colour, item.shape) if word)


def parse_caption(caption: str) -> Scene:
    """The scene that a sentence of the grammar describes; a missing size or background means any.

    Raises ValueError, naming the first word that does not fit.
    """
    words = caption.lower().replace(".", " ").replace(",", " ").split()
    words = [word for word in words if word not in {"a", "an", "the", "to", "is"}]
    background = None
    if words[-1:] == ["background"]:
        if len(words) < 3 or words[-3] != "on" or words[-2] not in BACKGROUNDS:
            raise ValueError(f"the background must be one of {', '.join(BACKGROUNDS)}: {caption!r}")
        background = words[-2]
        words = words[:-3]
    position = 0

    def take(allowed: tuple[str, ...], what: str) -> str:
        nonlocal position
        word = words[position] if position < len(words) else "the end"
        if word not in allowed:
            raise ValueError(f"expected {what} ({', '.join(allowed)}), found {word!r}: {caption!r}")
        position += 1
        return word

    objects: list[SceneObject] = []
    relations: list[str] = []
    while True:
        size = take(_SIZE_NAMES, "a size") if position < len(words) and words[position] in SIZES else None
        colour = take(_COLOUR_NAMES, "a colour")
        objects.append(SceneObject(colour, take(SHAPES, "a shape"), size))
        if position == len(words):
            return Scene(tuple(objects), tuple(relations), background)
        relation = take(("left", "right", "above", "below"), "a relation")
        if relation in ("left", "right"):
            relation += f" {take(('of',), 'the word of')}"
        relations.append(relation)


def is_held_out(caption: str) -> bool:
    """Whether training never draws this caption: one in `HELD_OUT_EVERY`, by CRC-32 of the canonical sentence."""
    return zlib.crc32(caption.encode()) % HELD_OUT_EVERY == 0


@cache
def shape_template(shape: str, size: str) -> np.ndarray:
    """Coverage of each pixel by the shape, float32 [side, side] in [0, 1], from 8x8 samples a pixel."""
    side, samples = SIZES[size], 8
    grid = (np.arange(side * samples) + 0.5) / (side * samples)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    if shape == "circle":
        inside = (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25
    elif shape == "square":
        inside = np.ones_like(x, dtype=bool)
    elif shape == "triangle":
        inside = np.abs(x - 0.5) <= y / 2
    else:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, not {shape!r}")
    return inside.reshape(side, samples, side, samples).mean((1, 3)).astype(np.float32)


def relation_holds(relation: str, first: tuple[float, float], second: tuple[float, float], margin: float) -> bool:
    """Whether `first` stands in `relation` to `second`; centres are (x, y) in pixels, y downwards."""
    dx, dy = second[0] - first[0], second[1] - first[1]
    return {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation] >= margin


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
