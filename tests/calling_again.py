"""A capture for machines without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class CalledAgain:
    """In place of a CUDA graph: replaying is calling the function again, and what it gives goes where it went first."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        given: Any = function()
        self.captures += 1
        given.fill_(torch.nan)  # nothing of the capture itself may be read

        def replay() -> None:
            self.replays += 1
            given.copy_(function())

        return given, replay
