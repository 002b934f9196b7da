"""A way to the data that has begun: samplers planned anew from the state that was reached."""

from __future__ import annotations

from collections.abc import Sequence

from service.procedures.noise_process import NoiseProcess
from service.procedures.schedules import Schedule
from service.procedures.tables import Grid


class Underway(NoiseProcess, frozen=True, kw_only=True):
    """The same noise process for a state alpha x0 + sigma eps: every sampler's table made for it begins there, with an empty
    history. The state is what `SamplerTable.alpha` and `sigma` say of it behind the last row that ran, and no data yet."""

    alpha: float
    sigma: float

    @classmethod
    def of(cls, noise: NoiseProcess, alpha: float, sigma: float) -> Underway:
        return cls(times=noise.times, prediction=noise.prediction, boundary=noise.boundary, alpha=alpha, sigma=sigma)

    def grid(
        self,
        steps: int,
        *,
        schedule: Schedule | None = None,
        shift: float | None = None,
        timesteps: Sequence[float] | None = None,
        tokens: int = 0,
        strength: float = 1.0,
    ) -> Grid:
        """The nodes of `steps` steps from the state to the data. `schedule`, `timesteps` and `strength` were those of the whole
        way, and say nothing about the rest of it."""
        return self.onwards(self.alpha, self.sigma, steps, shift=shift, tokens=tokens)
