"""The times of TrigFlow: x = cos(t) x0 + sin(t) eps, data of unit variance (sCM, arXiv 2410.11081; SANA-Sprint, 2503.09641)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from service.procedures.schedules import Schedule, evenly
from service.procedures.tables import Node


class AngleTimes(msgspec.Struct, frozen=True, kw_only=True, tag="trigflow"):
    """Angles from `largest` to 0, evenly; with two steps the second one is at `second`, where that is given."""

    largest: float = 1.5708
    second: float | None = 1.3

    def nodes(self, steps: int, schedule: Schedule | None, shift: float | None, tokens: int) -> list[Node]:
        """`steps` nodes, without the data. Raises ValueError for a shift, and for schedules that are not even in the angle."""
        if shift is not None:
            raise ValueError("`shift` moves the times of a flow; those of this model are angles")
        if schedule not in (None, "linear", "cosine"):
            raise ValueError(f"`schedule` {schedule} is not for angles, which are spaced evenly: default, linear or cosine")
        if steps == 2 and self.second is not None and schedule is None:
            return self.given((self.largest, self.second))
        return self.given(evenly(self.largest, 0.0, steps + 1)[:-1])

    def given(self, timesteps: Sequence[float]) -> list[Node]:
        """Nodes at these angles. Raises ValueError outside (0, pi / 2], but for rounding."""
        if not all(0.0 < t <= 1.5709 for t in timesteps):
            raise ValueError(f"`timesteps` of this model are angles in (0, pi / 2], not {list(timesteps)}")
        # The field's largest time, 1.57080, lies a little beyond pi / 2, where alpha would be negative by 4e-6.
        return [Node(max(math.cos(t), 0.0), math.sin(t), t) for t in timesteps]

    def at(self, ratio: float) -> Node:
        """The node with sigma / alpha = ratio."""
        return self.given([math.atan(ratio)])[0] if ratio > 0.0 else self.last()

    def onwards(self, node: Node, steps: int, shift: float | None, tokens: int) -> list[Node]:
        """`steps` nodes from this one on, which is the first, evenly."""
        return [node, *self.given(evenly(math.atan2(node.sigma, node.alpha), 0.0, steps + 1)[1:-1])]

    def last(self) -> Node:
        return Node(1.0, 0.0, 0.0)

    def first_state(self, node: Node) -> tuple[float, float]:
        """Pure noise."""
        return 0.0, 1.0
