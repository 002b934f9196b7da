"""Jumps from where a flow map's own jumps lead, which the paths of its teacher never show it.

A map that learnt on a teacher's paths leaves something wrong in a jump, half an object here and half there, and keeps it from
then on: on no path did it see such a state. A velocity that is exact leads from any state to a right picture, so that it can
teach the map there too. (Dataset aggregation: DAgger, arXiv 1011.0686.)
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from service.training.flow_objectives import landing
from service.training.trajectories import FREE_SHARE, LEGS, Jumps, PathStarts, Velocity, euler_leg, joined_rows, trimmed

OWN_JUMP_COUNTS = (2, 4, 8, 16)
OWN_JUMP_SHARES = (0.15, 0.35, 0.4, 0.1)
TAUGHT_BELOW = 0.8
LARGEST_MISS = 0.02
_SALT = 1 << 30  # a CPU generator takes the lower 32 bits of a seed


class OwnJumps:
    """Of the last `capacity` pictures that `network` made in a few jumps each, the jumps from t < `TAUGHT_BELOW` and the last:
    from its own state at t to where the velocity leads from there at s. Before that, states are mostly noise, and a path's.

    Most jumps miss that by next to nothing. Half of those drawn are drawn in proportion to the mean square by which they
    missed, at most `LARGEST_MISS` (as in prioritised replay, arXiv 1511.05952).

    What it holds depends on the weights of the time when it was computed, so it is part of a run's state.
    """

    def __init__(self, network: nn.Module, velocity: Velocity, starts: PathStarts, capacity: int) -> None:
        self.network = network
        self.velocity = velocity
        self.starts = starts
        self.batches: deque[tuple[Jumps, Tensor]] = deque(maxlen=capacity // starts.batch)
        self.end = 0

    def advance(self, end: int) -> None:
        """Have the jumps of the pictures before `end`, rounded down to whole batches; those passed over are not made."""
        batch = self.starts.batch
        end -= end % batch
        for first in range(max(self.end, end - batch * (self.batches.maxlen or 0)), end, batch):
            self.batches.append(self._made(first))
        self.end = max(self.end, end)

    def draw(self, count: int, generator: torch.Generator) -> Jumps:
        """Random jumps, more often those that missed. The generator is of the device that they are on."""
        missed = torch.cat([each for _, each in self.batches]).clamp_max(LARGEST_MISS)
        picks = torch.multinomial(missed + missed.mean(), count, replacement=True, generator=generator)
        drawn = joined_rows([jumps for jumps, _ in self.batches]).rows(picks)
        return replace(drawn, text=trimmed(drawn.text))

    def state_dict(self) -> dict[str, Any]:
        return {"end": self.end, "batches": [(vars(jumps), missed) for jumps, missed in self.batches]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.end = state["end"]
        self.batches.clear()
        device = self.starts.device
        for jumps, missed in state["batches"]:
            self.batches.append((Jumps(**{name: part.to(device) for name, part in jumps.items()}), missed.to(device)))

    @torch.no_grad()
    def _made(self, first: int) -> tuple[Jumps, Tensor]:
        start = self.starts(_SALT + first)
        x, jumps, missed = start.x, [], []
        for leg, stop in pairwise(_stops(torch.Generator().manual_seed(self.starts.seed_of(_SALT + first) + 1))):
            t, s = start.times[:, leg], start.times[:, stop]
            landed = landing(x, t - s, self.network(x, t, s, start.guidance, start.text).float())
            taught = (t < TAUGHT_BELOW) | (stop == LEGS)
            if taught.any():
                end = x
                for each in range(leg, stop):
                    end = euler_leg(self.velocity, end, start, each)
                jumps.append(Jumps(x, t, end, s, start.guidance, start.text).rows(taught))
                missed.append((landed - end).square().flatten(1).mean(1)[taught])
            x = landed
        return joined_rows(jumps), torch.cat(missed)


def _stops(generator: torch.Generator) -> list[int]:
    """Legs from 0 to `LEGS` between which a batch jumps: evenly many apart, or, in the share `FREE_SHARE`, any."""
    count = OWN_JUMP_COUNTS[int(torch.multinomial(torch.tensor(OWN_JUMP_SHARES), 1, generator=generator))]
    if float(torch.rand((), generator=generator)) < FREE_SHARE:
        between = (torch.randperm(LEGS - 1, generator=generator)[: count - 1] + 1).sort().values
        return [0, *between.tolist(), LEGS]
    return list(range(0, LEGS + 1, LEGS // count))
