"""The small world of the embedded picture model: scenes of coloured shapes, and the sentences that describe them.

A scene has one to three objects of distinct colours on a plain background. Neighbours in the caption are tied by a
relation: relation k holds between object k and object k+1, as a difference of centres of at least `MIN_OFFSET` pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

IMAGE_SIZE = 32
MIN_OFFSET = 6
MAX_OBJECTS = 3

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

_COLOUR_NAMES, _SIZE_NAMES = tuple(COLOURS), tuple(SIZES)


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
