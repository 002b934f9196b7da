"""Every scorer by name: how good a picture is for its text, so that a search can choose among several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from service.models.scene_checker import check_scene
from service.models.scenes import parse_caption


@dataclass(frozen=True)
class Scorer:
    """`score` is a pure function of a prompt and a picture, uint8 [H, W, 3]: higher is better. `check` raises ValueError, in
    words for a client, for a prompt that no picture can be scored by."""

    score: Callable[[str, np.ndarray], float]
    check: Callable[[str], object] = lambda prompt: None


def _scene(prompt: str, picture: np.ndarray) -> float:
    """The share of a caption of coloured shapes that a picture of 32 by 32 pixels shows, 0 to 1; 1 is all of it."""
    return check_scene(torch.from_numpy(picture / 127.5 - 1.0).permute(2, 0, 1), parse_caption(prompt)).shown


def _sharpness(prompt: str, picture: np.ndarray) -> float:
    """Mean square of the Laplacian of the luminance (of 0 to 1): the more, the less a picture is blurred, as one of few steps may
    be. It says nothing about the prompt."""
    light = picture @ np.array([0.299, 0.587, 0.114]) / 255.0
    if min(light.shape) < 3:
        return 0.0
    inner = light[1:-1, 1:-1]
    laplacian = light[:-2, 1:-1] + light[2:, 1:-1] + light[1:-1, :-2] + light[1:-1, 2:] - 4.0 * inner
    return float(np.square(laplacian).mean())


SCORERS = {"scene": Scorer(_scene, parse_caption), "sharpness": Scorer(_sharpness)}
ALWAYS = ("sharpness",)
"""Those that judge any model's pictures; others are for the models that name them."""
