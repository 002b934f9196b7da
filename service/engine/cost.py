"""What a forward costs, learnt from those that ran."""

from __future__ import annotations

START = 4
"""The n-th forward counts for n / (n + START) of the one after it, until that is `memory`."""


class ForwardCost:
    """seconds = fixed + slope · size, by exponentially weighted least squares over measured forwards.

    Each counts for `memory` of the one after it, the first ones for less: a model's first forward is often a slow one, of which
    little may be left a dozen forwards later.
    """

    def __init__(self, memory: float = 0.98) -> None:
        self._memory = memory
        self._observed = 0
        self._weight = self._n = self._s = self._nn = self._ns = 0.0

    def observe(self, size: int, seconds: float) -> None:
        memory = min(self._memory, self._observed / (self._observed + START))
        self._observed += 1
        for name, value in (("_weight", 1.0), ("_n", size), ("_s", seconds), ("_nn", size * size), ("_ns", size * seconds)):
            setattr(self, name, memory * getattr(self, name) + value)

    def affordable(self, seconds: float) -> int | None:
        """The largest size whose forward is expected to take `seconds`; None while the slope is not known.

        Where the fixed part alone takes longer than that, small batches would only waste it: the size is then the one
        that doubles the fixed part.
        """
        line = self.line()
        if line is None or line[1] <= 0.0:
            return None
        fixed, slope = line
        return max(1, int(max(seconds - fixed, fixed) / slope + 1e-9))

    def seconds(self, size: float) -> float | None:
        """What a forward of this size is expected to take; None before any has run. While those that ran were of one size
        alone, a larger one is taken to be dearer in proportion, and a smaller one no cheaper."""
        if self._weight == 0.0:
            return None
        line = self.line()
        if line is not None:
            return line[0] + line[1] * size
        return self._s / self._weight * max(1.0, size * self._weight / self._n)

    def line(self) -> tuple[float, float] | None:
        """(fixed, slope), neither below 0; None while forwards of one size alone have run."""
        if self._weight == 0.0:
            return None
        mean_n, mean_s = self._n / self._weight, self._s / self._weight
        variance = self._nn / self._weight - mean_n**2
        if variance < 1e-6 * mean_n**2:
            return None
        slope = max(0.0, (self._ns / self._weight - mean_n * mean_s) / variance)
        return max(0.0, mean_s - slope * mean_n), slope
