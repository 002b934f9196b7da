"""The exact denoiser of the drawn scenes: E[x0 | x_t, caption] in closed form, for every caption but the empty one.

What a caption leaves to chance is where its objects stand: a finite number of places each, tied by relations and kept
apart. Boxes never touch, so that a picture is a sum of one part an object, its likelihood under noise a product of one
factor an object, and the posterior of three places one of three factors and of three pairs. A network is taught by it
what it would otherwise have to average over many pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
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
from service.training.precision import full_precision
from service.training.scenes import CELL

_PLACES_A_SIDE = (IMAGE_SIZE - min(SIZES.values())) // CELL + 1
_PLACES = _PLACES_A_SIDE**2
_LARGEST = max(SIZES.values())
_ROWS_AT_ONCE = 8  # what a CPU's cache holds
_ROWS_AT_ONCE_ON_A_GPU = 512
_EARLIEST = 0.02

Sizes = tuple[str | None, ...]
"""Of a scene's three objects; None is no object."""

Pair = tuple[str | None, str | None, str | None]
"""Sizes of two objects and the relation between them; None is no object, or no relation that is named."""


@dataclass(frozen=True)
class ExactScenes:
    """Scenes as the complete ones that each may be: row r of the H rows belongs to scene `owner[r]` of the `count`.

    `background` [H, 3] and `contrast` [H, 3, 3] (object, channel) are in the units of pictures, `template` [H, 3] is an
    index into `_templates`, `pairs` [3, H] one into `_pair_priors` for objects 1 and 2, 2 and 3, 1 and 3, and `prior` [H] the
    logarithm of the row's own.
    """

    count: int
    owner: Tensor
    background: Tensor
    contrast: Tensor
    template: Tensor
    pairs: Tensor
    prior: Tensor

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> ExactScenes:
        complete = [(index, choice) for index, scene in enumerate(scenes) for choice in _completions(scene)]
        backgrounds, contrasts, templates, pairs, priors = [], [], [], [], []
        for _, scene in complete:
            absent = [None] * (MAX_OBJECTS - len(scene.objects))
            base = np.array(BACKGROUNDS[str(scene.background)]) / 127.5 - 1.0
            colours = [np.array(COLOURS[item.colour]) / 127.5 - 1.0 for item in scene.objects]
            sizes = (*(item.size for item in scene.objects), *absent)
            backgrounds.append(base)
            contrasts.append([colour - base for colour in colours] + [np.zeros(3)] * len(absent))
            templates.append([_template_index(item) for item in scene.objects] + [0] * len(absent))
            pairs.append([_PAIRS.index(pair) for pair in _pairs(sizes, (*scene.relations, *absent))])
            priors.append(-_log_layouts(sizes))
        return cls(
            len(scenes),
            torch.tensor([index for index, _ in complete]),
            torch.from_numpy(np.array(backgrounds, dtype=np.float32)),
            torch.from_numpy(np.array(contrasts, dtype=np.float32)),
            torch.tensor(templates),
            torch.tensor(pairs).T.contiguous(),
            torch.tensor(priors),
        )

    def to(self, device: torch.device, non_blocking: bool = False) -> ExactScenes:
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ExactScenes:
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> ExactScenes:
        tensors = self.owner, self.background, self.contrast, self.template, self.pairs, self.prior
        return ExactScenes(self.count, *map(change, tensors))


def exact_denoised(x: Tensor, t: Tensor, scenes: ExactScenes) -> Tensor:
    """E[x0 | x_t = x, caption], like x [B, 3, 32, 32], where x_t = (1-t) x0 + t eps at times t [B] in (0, 1].

    In float32 wherever it is called: likelihoods are exponentials of sums over a picture, divided by t^2.
    """
    with full_precision(x.device):
        return _denoised(x, t, scenes)


def _denoised(x: Tensor, t: Tensor, scenes: ExactScenes) -> Tensor:
    owner = scenes.owner
    time = t.clamp_min(_EARLIEST)[owner].view(-1, 1, 1)
    background = scenes.background[..., None, None]
    left = x[owner] - (1 - time[..., None]) * background
    projected = torch.einsum("bchw,bkc->bkhw", left, scenes.contrast)
    room = _LARGEST - min(SIZES.values())
    templates = _templates(x.device)
    overlap = F.conv2d(F.pad(projected.flatten(0, 1)[:, None], (0, room, 0, room)), templates, stride=CELL).flatten(2)
    overlap = overlap.gather(1, scenes.template.view(-1, 1, 1).expand(-1, 1, _PLACES)).view(len(owner), MAX_OBJECTS, _PLACES)
    energy = scenes.contrast.square().sum(-1) * templates.square().sum((1, 2, 3))[scenes.template]
    scale = (1 - time) / time.square()
    places, evidence = _place_marginals(scale * overlap - scale * (1 - time) / 2 * energy[..., None], scenes)
    evidence = evidence + scenes.prior - left.square().sum((1, 2, 3)) / (2 * time.square().flatten())
    pictures = background + _drawn(places, scenes)
    theirs = owner == torch.arange(scenes.count, device=x.device)[:, None]
    weights = evidence.expand_as(theirs).masked_fill(~theirs, -torch.inf).softmax(1)
    return (weights @ pictures.flatten(1)).view_as(x)


def _drawn(places: Tensor, scenes: ExactScenes) -> Tensor:
    """[H, 3, 32, 32]: what objects add to the background on average, with these probabilities [H, 3, places] of their places."""
    planes = places.view(-1, 1, _PLACES_A_SIDE, _PLACES_A_SIDE)
    templates = _templates(places.device)
    selected = F.one_hot(scenes.template.view(-1), len(templates)).to(planes.dtype)[..., None, None] * planes
    coverage = F.conv_transpose2d(selected, templates, stride=CELL)[:, 0, :IMAGE_SIZE, :IMAGE_SIZE]
    return torch.einsum("bkhw,bkc->bchw", coverage.view(-1, MAX_OBJECTS, IMAGE_SIZE, IMAGE_SIZE), scenes.contrast)


def _place_marginals(scores: Tensor, scenes: ExactScenes) -> tuple[Tensor, Tensor]:
    """(posterior of each object's place [H, 3, places], logarithm of the likelihood [H]) from those of each place [H, 3, places].

    In logarithms, over all triples of places: an object can fit a place best that another one of a like colour holds.
    """
    marginals, evidence = torch.empty_like(scores), scores.new_empty(len(scores))
    priors = _pair_priors(scores.device)
    at_once = _ROWS_AT_ONCE if scores.device.type == "cpu" else _ROWS_AT_ONCE_ON_A_GPU
    for rows in torch.arange(len(scores), device=scores.device).split(at_once):
        first, second, third = scores[rows].unbind(1)
        first_second, second_third, first_third = priors[scenes.pairs[:, rows]]
        joint = _triples(first_second + first[:, :, None] + second[:, None], second_third + third[:, None], first_third)
        evidence[rows] = joint.flatten(1).logsumexp(1)
        joint = joint.sub_(evidence[rows].view(-1, 1, 1, 1)).exp_()
        ahead = joint.sum(3)
        marginals[rows] = torch.stack([ahead.sum(2), ahead.sum(1), joint.sum((1, 2))], 1)
    return marginals, evidence


def _triples(first_second: Tensor, second_third: Tensor, first_third: Tensor) -> Tensor:
    """[H, places, places, places]: the sums of three pairs [H, places, places]."""
    return (first_second[..., None] + second_third[:, None]).add_(first_third[:, :, None])


def _completions(scene: Scene) -> Iterator[Scene]:
    """Every scene without anything open that the caption may mean."""
    backgrounds = BACKGROUNDS if scene.background is None else (scene.background,)
    choices = [SIZES if item.size is None else (item.size,) for item in scene.objects]
    for background, *sizes in product(backgrounds, *choices):
        objects = tuple(replace(item, size=size) for item, size in zip(scene.objects, sizes, strict=True))
        yield replace(scene, objects=objects, background=background)


@cache
def _templates(device: torch.device) -> Tensor:
    """Coverage of every shape of every size, [kinds, 1, largest, largest], in the upper left corner."""
    kinds = [shape_template(shape, size) for size in SIZES for shape in SHAPES]
    padded = [F.pad(torch.from_numpy(k), (0, _LARGEST - len(k), 0, _LARGEST - len(k))) for k in kinds]
    return torch.stack(padded)[:, None].to(device)


def _template_index(item: SceneObject) -> int:
    return list(SIZES).index(str(item.size)) * len(SHAPES) + SHAPES.index(item.shape)


def _corners(size: str | None) -> list[tuple[int, int] | None]:
    """Corner (x, y) of each place, None where the box leaves the picture; an absent object has the one place 0."""
    if size is None:
        return [(0, 0)] + [None] * (_PLACES - 1)
    last = IMAGE_SIZE - SIZES[size]
    grid = [(CELL * column, CELL * row) for row in range(_PLACES_A_SIDE) for column in range(_PLACES_A_SIDE)]
    return [corner if max(corner) <= last else None for corner in grid]


_SIZE_CHOICES: Sizes = (*SIZES, None)
_PAIRS: list[Pair] = list(product(_SIZE_CHOICES, _SIZE_CHOICES, (*RELATIONS, None)))


def _pairs(sizes: Sizes, relations: Sequence[str | None]) -> list[Pair]:
    """Objects 1 and 2, 2 and 3, 1 and 3."""
    first, second, third = sizes
    return [(first, second, relations[0]), (second, third, relations[1]), (first, third, None)]


@cache
def _pair_priors(device: torch.device) -> Tensor:
    """[pairs, places, places]: of each of `_PAIRS`, the logarithm of the prior of two places."""
    return torch.stack([_pair_prior(*pair) for pair in _PAIRS]).to(device)


@cache
def _log_layouts(sizes: Sizes) -> float:
    """Logarithm of the number of ways in which boxes can stand: for given sizes, each is as probable as the others."""
    pairs = [_pair_prior(*pair)[None] for pair in _pairs(sizes, (None, None))]
    return float(_triples(*pairs).logsumexp((1, 2, 3)))


@cache
def _pair_prior(first: str | None, second: str | None, relation: str | None) -> Tensor:
    """[places, places]: the logarithm of the probability of the relation where two boxes fit and stand apart, else of 0.

    Captions name one of the relations that hold, each with the same probability; None is none named.
    """
    prior = torch.zeros(_PLACES, _PLACES)
    for i, a in enumerate(_corners(first)):
        for j, b in enumerate(_corners(second)):
            if a is None or b is None:
                continue
            if first is None or second is None:
                prior[i, j] = 1.0
                continue
            gap = max(max(y - x - SIZES[first], x - y - SIZES[second]) for x, y in zip(a, b, strict=True))
            if gap < 1:
                continue
            centres = [(x + SIZES[size] / 2, y + SIZES[size] / 2) for (x, y), size in ((a, first), (b, second))]
            holding = [name for name in RELATIONS if relation_holds(name, centres[0], centres[1], MIN_OFFSET)]
            prior[i, j] = 1.0 if relation is None else (relation in holding) / len(holding)
    return prior.log()
