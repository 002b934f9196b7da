"""Says exactly whether a picture shows what a caption asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from service.models.scenes import (
    BACKGROUNDS,
    COLOURS,
    MIN_OFFSET,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    relation_holds,
    shape_template,
)

MIN_IOU = 0.75
MAX_STRAY_PIXELS = 4
MAX_UNEXPLAINED_PIXELS = 12
MIN_BACKGROUND_SHARE = 0.35
COLOUR_TOLERANCE = 75.0
BACKGROUND_TOLERANCE = 45.0
MIN_PART_PIXELS = 3
CENTRE_TOLERANCE = 1.0
_MIXTURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Verdict:
    """What is wrong with the picture: with its objects and background, and with where the objects stand.

    `shown` is the share of what the caption asks for that can be seen: the background, nothing beside the objects and, of
    every object, that it is there in one clear piece, its shape, its size and where it stands. 1 is a correct picture.
    """

    problems: tuple[str, ...]
    relation_problems: tuple[str, ...] = ()
    shown: float = 0.0

    @property
    def correct(self) -> bool:
        return not self.problems and not self.relation_problems

    @property
    def objects_correct(self) -> bool:
        """Whether everything but the relations is as asked for."""
        return not self.problems


@dataclass(frozen=True)
class Match:
    """The drawn shape that comes closest to a set of pixels; `centre` is (x, y) in pixels."""

    shape: str
    size: str
    iou: float
    centre: tuple[float, float]
    pixels: np.ndarray


def check_scene(image: Tensor, scene: Scene) -> Verdict:
    """Judge one picture, float [3, 32, 32] in [-1, 1], by a scene; what the scene leaves open may be anything."""
    picture = ((image.detach().float().clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    background = _find_background(picture)
    if background is None:
        return Verdict(("no plain background",))
    problems: list[str] = []
    missing = 0
    if scene.background not in (None, background):
        problems.append(f"the background is {background}, not {scene.background}")
    colours, unexplained = _label_pixels(picture, background)
    if unexplained.sum() > MAX_UNEXPLAINED_PIXELS:
        problems.append(f"{int(unexplained.sum())} pixels have no colour of a scene")
    matches: list[Match | None] = []
    stray = np.isin(colours, [k for k, name in enumerate(COLOURS) if name not in _colours_of(scene)])
    for item in scene.objects:
        mask = colours == list(COLOURS).index(item.colour)
        match = best_match(mask) if mask.sum() >= MIN_PART_PIXELS else None
        matches.append(match)
        if match is None:
            problems.append(f"no {item.colour} object")
            missing += _claims(item) - 1  # besides the problem itself
            continue
        problems += _object_problems(item, match, mask)
        stray |= mask & ~_dilate(match.pixels)
    if stray.sum() > MAX_STRAY_PIXELS:
        problems.append(f"{int(stray.sum())} pixels belong to no object of the caption")
    misplaced: list[str] = []
    for relation, first, second in zip(scene.relations, matches, matches[1:], strict=False):
        if first is None or second is None:
            missing += 1
            continue
        if not relation_holds(relation, first.centre, second.centre, MIN_OFFSET - CENTRE_TOLERANCE):
            misplaced.append(f"an object is not {relation} the next")
    asked = 3 + sum(map(_claims, scene.objects)) + len(scene.relations)
    return Verdict(tuple(problems), tuple(misplaced), 1.0 - (len(problems) + len(misplaced) + missing) / asked)


def check_scenes(images: Tensor, scenes: Sequence[Scene]) -> list[Verdict]:
    """A verdict for each of the pictures [N, 3, 32, 32]."""
    return [check_scene(image, scene) for image, scene in zip(images, scenes, strict=True)]


def accuracy(images: Tensor, scenes: Sequence[Scene]) -> float:
    """Share of the pictures [N, 3, 32, 32] that show their scene."""
    return sum(verdict.correct for verdict in check_scenes(images, scenes)) / len(scenes)


def best_match(mask: np.ndarray) -> Match:
    """The shape, size and position whose pixels agree best with a mask, bool [32, 32], by intersection over union."""
    pixels = torch.from_numpy(mask.astype(np.float32))
    best: Match | None = None
    for size in SIZES:
        templates = _binary_templates(size)
        overlap = F.conv2d(pixels[None, None], templates)[0]
        union = pixels.sum() + templates.sum((1, 2, 3))[:, None, None] - overlap
        iou = overlap / union
        index = int(iou.argmax())
        value = float(iou.flatten()[index])
        if best is None or value > best.iou:
            shape, y, x = (int(part) for part in np.unravel_index(index, iou.shape))
            covered = np.zeros_like(mask)
            covered[y : y + SIZES[size], x : x + SIZES[size]] = templates[shape, 0].numpy() > 0
            half = SIZES[size] / 2
            best = Match(SHAPES[shape], size, value, (x + half, y + half), covered)
    assert best is not None
    return best


def _claims(item: SceneObject) -> int:
    """What can be wrong with an object: clear, of its shape, in one part and, where a size is asked for, of that."""
    return 3 if item.size is None else 4


def _object_problems(item: SceneObject, match: Match, mask: np.ndarray) -> list[str]:
    problems = []
    if match.iou < MIN_IOU:
        problems.append(f"the {item.colour} object has no clear shape")
    if match.shape != item.shape:
        problems.append(f"the {item.colour} object is a {match.shape}, not a {item.shape}")
    if item.size not in (None, match.size):
        problems.append(f"the {item.colour} object is {match.size}, not {item.size}")
    parts = _parts(mask)
    if parts != 1:
        problems.append(f"the {item.colour} object is in {parts} parts")
    return problems


def _colours_of(scene: Scene) -> set[str]:
    return {item.colour for item in scene.objects}


def _find_background(picture: np.ndarray) -> str | None:
    shares = {
        name: float((np.abs(picture - np.array(colour)).max(-1) < BACKGROUND_TOLERANCE).mean())
        for name, colour in BACKGROUNDS.items()
    }
    name = max(shares, key=lambda key: shares[key])
    return name if shares[name] >= MIN_BACKGROUND_SHARE else None


@cache
def _mixtures(background: str) -> tuple[np.ndarray, np.ndarray]:
    """(points [P, 3], colour index [P] or -1): a pixel on an edge mixes an object with the background."""
    base = np.array(BACKGROUNDS[background], dtype=np.float32)
    points, labels = [], []
    for index, colour in enumerate(COLOURS.values()):
        for share in _MIXTURES:
            points.append(base + share * (np.array(colour, dtype=np.float32) - base))
            labels.append(index if share >= 0.5 else -1)
    return np.stack(points), np.array(labels)


def _label_pixels(picture: np.ndarray, background: str) -> tuple[np.ndarray, np.ndarray]:
    """(colour index or -1 for background, whether no mixture comes near), both [32, 32]."""
    points, labels = _mixtures(background)
    distance = np.linalg.norm(picture[:, :, None] - points, axis=-1)
    nearest = distance.argmin(-1)
    return labels[nearest], distance.min(-1) > COLOUR_TOLERANCE


@cache
def _binary_templates(size: str) -> Tensor:
    return torch.stack([torch.from_numpy(shape_template(shape, size) >= 0.5).float()[None] for shape in SHAPES])


def _dilate(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    return np.asarray(windows.any((2, 3)))


def _parts(mask: np.ndarray) -> int:
    """Number of 8-connected parts of at least `MIN_PART_PIXELS` pixels."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    parts = 0
    while left:
        front, size = [left.pop()], 0
        while front:
            y, x = front.pop()
            size += 1
            around = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (y + dy, x + dx) in left]
            left.difference_update(around)
            front += around
        parts += size >= MIN_PART_PIXELS
    return parts
