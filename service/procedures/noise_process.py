"""What a network's training did to data, what the network says about it, and the grids that samplers are computed from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import msgspec

from service.procedures.angle_times import AngleTimes
from service.procedures.flow_times import FlowTimes
from service.procedures.schedules import Schedule
from service.procedures.sigma_times import SigmaTimes
from service.procedures.tables import Grid, Node, Prediction
from service.procedures.training_times import TrainingTimes

_KINDS: dict[type, Literal["flow", "vp", "ve", "trigflow"]] = {
    FlowTimes: "flow",
    TrainingTimes: "vp",
    SigmaTimes: "ve",
    AngleTimes: "trigflow",
}


class NoiseProcess(msgspec.Struct, frozen=True, kw_only=True):
    """The noise that a network was trained with. `NoiseProcess()` is plain rectified flow: t in [0, 1], a velocity, no shift.

    times: the noise levels, how they are spaced by default and how the network is told them.
    prediction: what the network returns (see `Grid`).
    boundary: of preconditioned networks, the noise level at which they return x itself.
    """

    times: FlowTimes | TrainingTimes | SigmaTimes | AngleTimes = FlowTimes()
    prediction: Prediction = "velocity"
    boundary: float = 0.0

    @property
    def kind(self) -> Literal["flow", "vp", "ve", "trigflow"]:
        """flow: alpha + sigma = 1; vp and trigflow: alpha^2 + sigma^2 = 1; ve: alpha = 1."""
        return _KINDS[type(self.times)]

    @property
    def shift_of_jumps(self) -> float | None:
        """The shift of a few long jumps; None: as of all other steps."""
        return self.times.shift_of_jumps if isinstance(self.times, FlowTimes) else None

    def evenly(self) -> NoiseProcess:
        """The same flow with times that run evenly from 1 to 0 before the shift, as pipelines ask for that hand
        sigmas = linspace(1, 1 / N, N) to their scheduler. Raises ValueError unless it is a flow."""
        if not isinstance(self.times, FlowTimes):
            raise ValueError(f"only the times of a flow run from 1 to 0, not those of {self.kind}")
        return msgspec.structs.replace(self, times=msgspec.structs.replace(self.times, first=1.0, end=0.0, end_included=False))

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
        """The nodes of `steps` steps from noise to data.

        schedule, shift: instead of the process's own. shift is for flows alone.
        timesteps: the nodes themselves, falling, instead of `steps`, `schedule` and `shift`: t in (0, 1] of a flow, training
            timesteps, sigma, or angles. The data follow, unless the list ends with 0.
        tokens: length of the picture as a sequence, where the shift depends on it.
        strength: the share of the steps that is left, the last ones (for flows rounded up, otherwise down, as pipelines of
            the field do; at least one); below 1 the first state has a given picture in it, so the step that begins at pure
            noise is left out however little below 1 it is.

        Raises ValueError, in words for a client, for what this process has no grid for.
        """
        if steps < 1:
            raise ValueError(f"`steps` must be at least 1, not {steps}")
        if timesteps is None:
            nodes = self.times.nodes(steps, schedule, shift, tokens)
        else:
            if schedule is not None or shift is not None:
                raise ValueError("`timesteps` are taken as they are: leave `schedule` and `shift` out")
            nodes = self._given(timesteps)
        nodes = [*nodes, self.times.last()]
        first = len(nodes) - 1 - self._kept(len(nodes) - 1, strength)
        if strength < 1.0 and nodes[first].alpha == 0.0:
            if len(nodes) == 2:
                raise ValueError("`strength` leaves nothing of a given picture where the one step begins at pure noise")
            first = 1
        start = self.times.first_state(nodes[0]) if strength == 1.0 else nodes[first][:2]
        return self._on(nodes[first:], start)

    def onwards(self, alpha: float, sigma: float, steps: int, *, shift: float | None = None, tokens: int = 0) -> Grid:
        """The nodes of `steps` steps to the data from a state alpha x0 + sigma eps, whatever steps led there."""
        last = self.times.last()
        if steps < 1 or not sigma * last.alpha > alpha * last.sigma:
            raise ValueError(f"a state that is not data and at least 1 step are needed, not sigma {sigma} and {steps} steps")
        node = self.times.at(sigma / alpha if alpha > 0.0 else math.inf)
        nodes = self.times.onwards(Node(alpha, sigma, node.time), steps, shift, tokens)
        return self._on([*nodes, last], (alpha, sigma))

    def _on(self, nodes: Sequence[Node], start: tuple[float, float]) -> Grid:
        data = self.times.sigma_data if isinstance(self.times, SigmaTimes) else 0.5
        return Grid.from_nodes(nodes, self.prediction, start, sigma_data=data, boundary=self.boundary)

    def _given(self, timesteps: Sequence[float]) -> list[Node]:
        listed = list(timesteps)
        if self.kind != "vp" and len(listed) > 1 and listed[-1] == 0.0:
            listed.pop()
        if any(after >= before for before, after in pairwise(listed)):
            raise ValueError(f"`timesteps` must fall from noise to data, not {list(timesteps)}")
        return self.times.given(listed)

    def _kept(self, steps: int, strength: float) -> int:
        if not 0.0 < strength <= 1.0:
            raise ValueError(f"`strength` must be in (0, 1], not {strength}")
        share = round(steps * strength, 9)
        return max(1, math.ceil(share) if self.kind == "flow" else math.floor(share))


PLAIN_FLOW = NoiseProcess()
