"""What scorers say of pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from service.models.scorers import ALWAYS, SCORERS
from service.training.scenes import draw_scenes


def test_a_drawn_scene_shows_all_of_its_own_caption_and_less_of_another() -> None:
    batch = draw_scenes(11, 30)
    pictures = ((batch.images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    score = SCORERS["scene"].score
    own = [score(scene.caption, picture) for scene, picture in zip(batch.scenes, pictures, strict=True)]
    other = [score(scene.caption, picture) for scene, picture in zip(batch.scenes, pictures[1:], strict=False)]
    assert sum(value == 1.0 for value in own) >= 29
    assert max(other) < 1.0 and min(other) >= 0.0


def test_a_caption_that_is_no_scene_is_refused_before_anything_is_made() -> None:
    with pytest.raises(ValueError, match="a shape"):
        SCORERS["scene"].check("a red red circle")
    SCORERS["sharpness"].check("anything at all")


def test_blur_lowers_sharpness() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    values = [
        SCORERS["sharpness"].score("", np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)))) for radius in (0, 1, 2, 4)
    ]
    assert values == sorted(values, reverse=True) and values[-1] > 0.0
    assert SCORERS["sharpness"].score("", np.full((8, 8, 3), 77, np.uint8)) == pytest.approx(0.0, abs=1e-12)


def test_those_for_every_model_are_known() -> None:
    assert set(ALWAYS) <= set(SCORERS)
