"""The times of rectified flow: x = (1 - t) x0 + t eps, with t from 1 to 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from service.procedures.schedules import Schedule, evenly, spaced
from service.procedures.tables import Node


class ResolutionShift(msgspec.Struct, frozen=True, kw_only=True):
    """A shift that grows with the picture: mu lies on a line through (base_tokens, base) and (largest_tokens, largest), and the
    shift is e^mu ("exponential"; FLUX.1, Esser et al., arXiv 2403.03206, sec. 5.3.2) or mu itself ("linear").

    law "flux2": the line that FLUX.2 was fitted with, which depends on the number of steps too.
    """

    base: float = 0.5
    largest: float = 1.15
    base_tokens: int = 256
    largest_tokens: int = 4096
    form: Literal["exponential", "linear"] = "exponential"
    law: Literal["line", "flux2"] = "line"

    def shift(self, tokens: int, steps: int) -> float:
        """The shift for a picture of this many tokens; `base_tokens` where 0."""
        tokens = tokens or self.base_tokens
        if self.law == "flux2":
            mu = _flux2_mu(tokens, steps)
        else:
            slope = (self.largest - self.base) / (self.largest_tokens - self.base_tokens)
            mu = tokens * slope + self.base - slope * self.base_tokens
        return math.exp(mu) if self.form == "exponential" else mu


def _flux2_mu(tokens: int, steps: int) -> float:
    """Two measured lines over the tokens, at 10 and at 200 steps, and a line over the steps between them; for large
    pictures that at 200 steps alone."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    slope = (at_200 - (8.73809524e-05 * tokens + 1.89833333)) / 190.0
    return at_200 + slope * (steps - 200.0)


class FlowTimes(msgspec.Struct, frozen=True, kw_only=True, tag="flow"):
    """Times of a flow: even ones from `first` towards `end`, shifted towards the noise, stretched, spaced, in this order.

    unit: the network is told unit t; with `whole`, rounded down.
    end_included: whether `end` is the last time before the data, or the place of the data itself.
    largest: times are cut off there.
    shift, resolution: t <- k t / (1 + (k - 1) t) with k = shift, or what the resolution gives.
    terminal: the last time before the data after the shift, by stretching 1 - t; None leaves it.
    shift_of_jumps: the shift of a few long jumps of a flow map; None: as all others. By default the first jumps are short:
        what stands where is decided near the noise.
    """

    unit: float = 1.0
    whole: bool = False
    schedule: Schedule = "linear"
    first: float = 1.0
    end: float = 0.0
    end_included: bool = False
    largest: float = 1.0
    shift: float = 1.0
    resolution: ResolutionShift | None = None
    terminal: float | None = None
    shift_of_jumps: float | None = 3.0

    def nodes(self, steps: int, schedule: Schedule | None, shift: float | None, tokens: int) -> list[Node]:
        """`steps` nodes, without the data."""
        if self.whole and self.end == 0.0:
            # As the solvers that round down count: even in alpha, from the data. Where a time is whole, rounding decides.
            times = [1.0 - alpha for alpha in reversed(evenly(1.0, 1.0 - self.first, steps + 1))][:steps]
        else:
            times = evenly(self.first, self.end, steps if self.end_included else steps + 1)[:steps]
        times = [shifted(t, self._shift(shift, tokens, steps)) for t in times]
        if self.terminal and times[-1] < 1.0:
            factor = (1.0 - times[-1]) / (1.0 - self.terminal)
            times = [1.0 - (1.0 - t) / factor for t in times]
        schedule = schedule or self.schedule
        if schedule == "cosine":
            angles = evenly(math.atan2(times[0], 1.0 - times[0]), math.atan2(times[-1], 1.0 - times[-1]), steps)
            times = [math.sin(angle) / (math.sin(angle) + math.cos(angle)) for angle in angles]
        elif schedule != "linear":
            times = spaced(schedule, times[0], times[-1], steps)
        return [self._node(min(t, self.largest)) for t in times]

    def given(self, timesteps: Sequence[float]) -> list[Node]:
        """Nodes at these t; neither shifted nor spaced. Raises ValueError outside (0, 1]."""
        if not all(0.0 < t <= 1.0 for t in timesteps):
            raise ValueError(f"`timesteps` of a flow are in (0, 1], 1 is noise, not {list(timesteps)}")
        return [self._node(t) for t in timesteps]

    def at(self, ratio: float) -> Node:
        """The node with sigma / alpha = ratio, which may be infinite."""
        return self._node(ratio / (1.0 + ratio) if math.isfinite(ratio) else 1.0)

    def onwards(self, node: Node, steps: int, shift: float | None, tokens: int) -> list[Node]:
        """`steps` nodes from this one on, which is the first, as far apart as even times are after the shift."""
        k = self._shift(shift, tokens, steps)
        even = node.sigma / (k - (k - 1.0) * node.sigma)
        return [node, *(self._node(shifted(t, k)) for t in evenly(even, 0.0, steps + 1)[1:-1])]

    def last(self) -> Node:
        return Node(1.0, 0.0, 0.0)

    def first_state(self, node: Node) -> tuple[float, float]:
        """Pure noise."""
        return 0.0, 1.0

    def _shift(self, shift: float | None, tokens: int, steps: int) -> float:
        if shift is not None:
            return shift
        return self.resolution.shift(tokens, steps) if self.resolution is not None else self.shift

    def _node(self, t: float) -> Node:
        time = self.unit * t
        return Node(1.0 - t, t, float(math.floor(time)) if self.whole else time)


def shifted(t: float, shift: float) -> float:
    """Multiplies t / (1 - t) by `shift` (arXiv 2403.03206, eq. 23)."""
    return shift * t / (1.0 + (shift - 1.0) * t)
