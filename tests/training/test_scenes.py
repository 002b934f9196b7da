"""The scene generator and its checker: what is drawn is accepted, whatever was changed is rejected."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from service.models.scene_checker import accuracy, check_scene
from service.models.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, SceneObject, parse_caption
from service.training.scenes import SceneBatch, draw_scenes, is_held_out

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@pytest.fixture(scope="module")
def batch() -> SceneBatch:
    return draw_scenes(3, 150)


def noisy(images: Tensor, deviation: float) -> Tensor:
    return images + deviation * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def other(value: str, values: dict[str, object] | tuple[str, ...], taken: set[str] = frozenset()) -> str:
    return next(candidate for candidate in values if candidate != value and candidate not in taken)


def with_object(scene: Scene, index: int, **change: str) -> Scene:
    objects = list(scene.objects)
    objects[index] = replace(objects[index], **change)
    return replace(scene, objects=tuple(objects))


@pytest.mark.parametrize("deviation", [0.0, 0.05, 0.1])
def test_a_drawn_scene_shows_its_caption(batch: SceneBatch, deviation: float) -> None:
    assert accuracy(noisy(batch.images, deviation), batch.scenes) >= 0.99


def test_any_changed_attribute_is_rejected(batch: SceneBatch) -> None:
    for image, scene in zip(batch.images[::2], batch.scenes[::2], strict=True):
        colours = {item.colour for item in scene.objects}
        wrong = [replace(scene, background=other(str(scene.background), BACKGROUNDS))]
        for index, item in enumerate(scene.objects):
            wrong.append(with_object(scene, index, colour=other(item.colour, COLOURS, colours)))
            wrong.append(with_object(scene, index, shape=other(item.shape, SHAPES)))
            wrong.append(with_object(scene, index, size=other(str(item.size), SIZES)))
        for index, relation in enumerate(scene.relations):
            changed = (*scene.relations[:index], OPPOSITE[relation], *scene.relations[index + 1 :])
            wrong.append(replace(scene, relations=changed))
        for statement in wrong:
            assert not check_scene(image, statement).correct, (scene.caption, statement.caption)


def test_an_object_too_many_or_too_few_is_rejected(batch: SceneBatch) -> None:
    for image, scene in zip(batch.images, batch.scenes, strict=True):
        if len(scene.objects) > 1:
            fewer = Scene(scene.objects[:-1], scene.relations[:-1], scene.background)
            assert not check_scene(image, fewer).correct
        else:
            extra = SceneObject(other(scene.objects[0].colour, COLOURS), "circle", "small")
            assert not check_scene(image, Scene((*scene.objects, extra), ("above",), scene.background)).correct


def test_the_share_that_is_shown_falls_with_every_change(batch: SceneBatch) -> None:
    for image, scene in zip(batch.images, batch.scenes, strict=True):
        verdict = check_scene(image, scene)
        assert verdict.shown == 1.0 if verdict.correct else verdict.shown < 1.0
        if not verdict.correct or len(scene.objects) < 2:
            continue
        wrong = with_object(scene, 0, shape=other(scene.objects[0].shape, SHAPES))
        worse = with_object(wrong, 1, size=other(str(scene.objects[1].size), SIZES))
        worst = with_object(worse, 1, colour=other(scene.objects[1].colour, COLOURS, {item.colour for item in scene.objects}))
        shown = [check_scene(image, statement).shown for statement in (scene, wrong, worse, worst)]
        assert shown == sorted(shown, reverse=True) and len(set(shown)) == 4 and shown[-1] > 0.0
    assert check_scene(torch.zeros(3, 32, 32), replace(batch.scenes[0], background="white")).shown < 0.5


def test_exchanged_objects_are_rejected() -> None:
    found = draw_scenes(4, 200)
    image, scene = next(
        (image, scene)
        for image, scene in zip(found.images, found.scenes, strict=True)
        if len(scene.objects) == 2 and len({item.shape for item in scene.objects}) == 2
    )
    first, second = scene.objects
    exchanged = (replace(first, shape=second.shape), replace(second, shape=first.shape))
    assert check_scene(image, scene).correct
    assert not check_scene(image, replace(scene, objects=exchanged)).correct


def test_blank_pictures_and_noise_are_rejected(batch: SceneBatch) -> None:
    generator = torch.Generator().manual_seed(1)
    for scene in batch.scenes[:30]:
        for value in (-1.0, 0.0, 1.0):
            assert not check_scene(torch.full((3, 32, 32), value), scene).correct
        assert not check_scene(torch.randn(3, 32, 32, generator=generator), scene).correct


def test_a_blot_or_a_hole_is_rejected() -> None:
    found = draw_scenes(5, 600)
    image, scene = next(
        (image, scene)
        for image, scene in zip(found.images, found.scenes, strict=True)
        if len(scene.objects) == 1 and scene.background == "white" and scene.objects[0].shape == "square"
    )
    assert check_scene(image, scene).correct
    inside = (image.amin(0) < 0.5).nonzero()
    blotted, cut = image.clone(), image.clone()
    corner = 0 if int(inside[:, 0].min()) > 6 else 28
    blotted[:, corner : corner + 3, corner : corner + 3] = -1.0
    middle = int(inside[:, 0].float().mean())
    cut[:, middle : middle + 2] = 1.0
    assert not check_scene(blotted, scene).correct
    assert not check_scene(cut, scene).correct


def test_a_caption_and_its_scene_say_the_same(batch: SceneBatch) -> None:
    for scene in batch.scenes:
        assert parse_caption(scene.caption) == scene


def test_what_a_caption_leaves_open_may_be_anything(batch: SceneBatch) -> None:
    for image, scene in zip(batch.images[:30], batch.scenes[:30], strict=True):
        objects = tuple(replace(item, size=None) for item in scene.objects)
        open_scene = parse_caption(Scene(objects, scene.relations, None).caption)
        assert open_scene.background is None
        assert check_scene(image, open_scene).correct


@pytest.mark.parametrize(
    "caption", ["", "a red", "a red circle beside a blue square", "a red circle on a pink background", "a pink circle"]
)
def test_a_sentence_outside_the_grammar_is_refused(caption: str) -> None:
    with pytest.raises(ValueError):
        parse_caption(caption)


def test_scenes_depend_on_the_seed_alone_and_never_on_held_out_captions() -> None:
    first, second = draw_scenes((1, 2), 64), draw_scenes((1, 2), 64)
    assert first.scenes == second.scenes and torch.equal(first.images, second.images)
    assert draw_scenes((1, 3), 64).scenes != first.scenes
    assert not any(is_held_out(scene.caption) for scene in first.scenes)
    assert all(is_held_out(scene.caption) for scene in draw_scenes(0, 8, held_out=True).scenes)


def test_a_scene_takes_little_time_to_draw() -> None:
    begin = time.process_time()
    draw_scenes(0, 1000)
    assert time.process_time() - begin < 2.0
