"""The times of a variance-exploding process: x = x0 + sigma eps (EDM, arXiv 2206.00364; consistency models, 2303.01469)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from service.procedures.schedules import Schedule, evenly, karras, spaced
from service.procedures.tables import Node


class SigmaTimes(msgspec.Struct, frozen=True, kw_only=True, tag="ve"):
    """Noise levels from `sigma_max` to `sigma_min`, and how the network is told them: sigma itself, or unit log(sigma) / 4.

    sigma_data: standard deviation of the data that a preconditioned network was made for.
    points: where given, levels are some of that many along the schedule, as consistency models were trained on.
    final: where the last step goes: to the data, or to sigma_min.
    start: standard deviation of the first state: sigma of the first node, or with data of unit variance in it.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0
    schedule: Schedule = "karras"
    points: int | None = None
    told: Literal["sigma", "log"] = "sigma"
    unit: float = 1.0
    final: Literal["data", "lowest"] = "data"
    start: Literal["unit", "level"] = "level"

    def nodes(self, steps: int, schedule: Schedule | None, shift: float | None, tokens: int) -> list[Node]:
        """`steps` nodes, without the last. Raises ValueError for a shift, and for more steps than points."""
        if shift is not None:
            raise ValueError("`shift` moves the times of a flow; this model's noise is added to the data (sigma)")
        schedule = schedule or self.schedule
        if self.points is not None:
            if steps > self.points:
                raise ValueError(f"`steps` must be at most {self.points}, the noise levels that this model knows, not {steps}")
            every = self._along(schedule, self.points)
            return [self._node(every[i * (self.points // steps)]) for i in range(steps)]
        return [self._node(sigma) for sigma in self._along(schedule, steps)]

    def given(self, timesteps: Sequence[float]) -> list[Node]:
        """Nodes of these sigma."""
        if not all(0.0 < sigma <= self.sigma_max for sigma in timesteps):
            raise ValueError(f"`timesteps` of this model are sigma in (0, {self.sigma_max:g}], not {list(timesteps)}")
        return [self._node(sigma) for sigma in timesteps]

    def at(self, ratio: float) -> Node:
        """The node with sigma = ratio."""
        return self._node(min(ratio, self.sigma_max))

    def onwards(self, node: Node, steps: int, shift: float | None, tokens: int) -> list[Node]:
        """`steps` nodes from this one on, which is the first, spaced as from sigma_max; evenly below sigma_min."""
        if node.sigma > self.sigma_min:
            rest = karras(node.sigma, self.sigma_min, steps, self.rho)[1:]
        else:
            rest = evenly(node.sigma, 0.0, steps + 1)[1:-1]
        return [node, *map(self._node, rest)]

    def last(self) -> Node:
        return Node(1.0, 0.0, 0.0) if self.final == "data" else self._node(self.sigma_min)

    def first_state(self, node: Node) -> tuple[float, float]:
        """Noise of the chosen standard deviation."""
        return 0.0, node.sigma if self.start == "level" else math.hypot(1.0, node.sigma)

    def _along(self, schedule: Schedule, count: int) -> list[float]:
        if schedule == "karras":
            return karras(self.sigma_max, self.sigma_min, count, self.rho)
        if schedule == "cosine":
            angles = evenly(math.atan(self.sigma_max), math.atan(self.sigma_min), count)
            return [math.tan(angle) for angle in angles]
        return spaced(schedule, self.sigma_max, self.sigma_min, count)

    def _node(self, sigma: float) -> Node:
        if self.told == "sigma":
            return Node(1.0, sigma, self.unit * sigma)
        return Node(1.0, sigma, self.unit * 0.25 * math.log(sigma) if sigma > 0.0 else 0.0)
