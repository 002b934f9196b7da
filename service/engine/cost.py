"""What a forward costs, learnt from those that ran."""

from __future__ import annotations


class ForwardCost:
    """seconds = fixed + slope · size, by exponentially weighted least squares over measured forwards."""

    def __init__(self, memory: float = 0.98) -> None:
        self._memory = memory
        self._weight = self._n = self._s = self._nn = self._ns = 0.0

    def observe(self, size: int, seconds: float) -> None:
        for name, value in (("_weight", 1.0), ("_n", size), ("_s", seconds), ("_nn", size * size), ("_ns", size * seconds)):
            setattr(self, name, self._memory * getattr(self, name) + value)

    def affordable(self, seconds: float) -> int | None:
        """The largest size expected to run within `seconds`, at least 1; None while nothing is known."""
        if self._weight == 0.0:
            return None
        mean_n, mean_s = self._n / self._weight, self._s / self._weight
        variance = self._nn / self._weight - mean_n**2
        slope = (self._ns / self._weight - mean_n * mean_s) / variance if variance > 1e-9 else mean_s / mean_n
        if slope <= 0.0:
            return None
        return max(1, int((seconds - (mean_s - slope * mean_n)) / slope))
