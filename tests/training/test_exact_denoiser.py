"""The closed form of the scenes' denoiser against the average over every picture that a caption may mean, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor

from service.models.scene_checker import accuracy
from service.models.scenes import BACKGROUNDS, IMAGE_SIZE, MIN_OFFSET, RELATIONS, SIZES, Scene, parse_caption, relation_holds
from service.training.exact_denoiser import ExactScenes, exact_denoised
from service.training.scenes import CELL, draw_scenes, render
from tests.few import few

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TIMES = (1.0, 0.9, 0.7, 0.4, 0.1)


def pictures_of(scene: Scene) -> tuple[Tensor, Tensor]:
    """(every picture [K, 3, 32, 32] that the generator draws for a caption of one or two objects, their probabilities [K])."""
    backgrounds = BACKGROUNDS if scene.background is None else (scene.background,)
    choices = [SIZES if item.size is None else (item.size,) for item in scene.objects]
    pictures, weights = [], []
    for background, *sizes in product(backgrounds, *choices):
        objects = tuple(replace(item, size=size) for item, size in zip(scene.objects, sizes, strict=True))
        complete = replace(scene, background=background, objects=objects)
        drawn = list(layouts(complete))
        for corners, told in drawn:
            pictures.append(torch.from_numpy(render(complete, np.array(corners))).permute(2, 0, 1) / 127.5 - 1.0)
            weights.append(told / len(drawn))
    return torch.stack(pictures), torch.tensor(weights)


def layouts(scene: Scene) -> Iterator[tuple[tuple[tuple[int, int], ...], float]]:
    """(corners, the probability that the caption then tells this relation) of all that keep the boxes apart."""
    sides = [SIZES[str(item.size)] for item in scene.objects]
    places = [[(x, y) for x, y in product(range(0, IMAGE_SIZE - side + 1, CELL), repeat=2)] for side in sides]
    for corners in product(*places):
        if len(corners) == 1:
            yield corners, 1.0
            continue
        (first, second), (a, b) = corners, sides
        if all(first[k] < second[k] + b + 1 and second[k] < first[k] + a + 1 for k in range(2)):
            continue
        centres = [(x + side / 2, y + side / 2) for (x, y), side in zip(corners, sides, strict=True)]
        holding = [name for name in RELATIONS if relation_holds(name, centres[0], centres[1], MIN_OFFSET)]
        yield corners, (scene.relations[0] in holding) / len(holding)


@pytest.mark.parametrize(
    "caption",
    [
        "a large red circle on a gray background",
        "a small yellow triangle",
        "a large cyan square above a small purple triangle on a black background",
        "a large yellow circle left of a large red circle on a black background",
        "a green square below a blue circle on a white background",
    ],
)
@pytest.mark.parametrize("t", few(TIMES, 0.9, 0.4))
def test_it_is_the_average_over_all_pictures_of_the_caption(caption: str, t: float) -> None:
    scene = parse_caption(caption)
    pictures, weights = pictures_of(scene)
    generator = torch.Generator().manual_seed(3)
    picture = pictures[int(weights.multinomial(1, generator=generator))]
    x = (1 - t) * picture + t * torch.randn(picture.shape, generator=generator)
    likelihood = -(x - (1 - t) * pictures).double().square().sum((1, 2, 3)) / (2 * t * t)
    posterior = (likelihood + weights.double().log()).softmax(0)
    expected = torch.einsum("k,kchw->chw", posterior.float(), pictures)
    found = exact_denoised(x[None], torch.tensor([t]), ExactScenes.of([scene]))[0]
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_rows_do_not_influence_one_another() -> None:
    batch = draw_scenes((1, 2), 12)
    told = [replace(scene, background=None) if n % 3 == 0 else scene for n, scene in enumerate(batch.scenes)]
    t = torch.linspace(0.3, 1.0, 12)
    x = torch.lerp(batch.images, torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(0)), t.view(-1, 1, 1, 1))
    together = exact_denoised(x, t, ExactScenes.of(told))
    for row in range(12):
        alone = exact_denoised(x[row : row + 1], t[row : row + 1], ExactScenes.of(told[row : row + 1]))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_it_is_as_exact_where_networks_multiply_in_bfloat16(device: str) -> None:
    scenes = ExactScenes.of(draw_scenes((1, 3), 8).scenes)
    t = torch.tensor([1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.02])
    x = (1 - t.view(-1, 1, 1, 1)) * draw_scenes((1, 3), 8).images + t.view(-1, 1, 1, 1) * torch.randn(8, 3, 32, 32)
    there = torch.device(device)
    with torch.autocast(device, torch.bfloat16):
        found = exact_denoised(x.to(there), t.to(there), scenes.to(there))
    torch.testing.assert_close(found.cpu(), exact_denoised(x, t, scenes), atol=2e-4, rtol=0)


def test_its_flow_leads_from_noise_to_scenes_of_the_caption() -> None:
    """Three objects too, whose places cannot be counted up in a test: all that eight Euler steps end in is right."""
    scenes = draw_scenes((4, 4), 24, held_out=True).scenes
    exact = ExactScenes.of(scenes)
    x = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    even = torch.linspace(1, 0, 9)
    times = 3 * even / (1 + 2 * even)
    for t, s in pairwise(times):
        x = x + (s - t) * (x - exact_denoised(x, t.expand(24), exact)) / t
    assert accuracy(x, scenes) == 1.0
