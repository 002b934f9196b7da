"""Jumps from where a flow map's own jumps lead, which the paths of its teacher never show it.

A map that learnt on a teacher's paths leaves something wrong in a jump, half an object here and half there, and keeps it from
then on: on no path did it see such a state. A velocity that is exact leads from any state to a right picture, so that it can
teach the map there too. (Dataset aggregation: DAgger, arXiv 1011.0686.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from service.training.precision import CPU
from service.training.trajectories import BATCH, FREE_SHARE, LEGS, Captions, Jumps, PathStarts, Velocity, euler_leg

OWN_JUMP_COUNTS = (2, 4, 8, 16)
OWN_JUMP_SHARES = (0.15, 0.35, 0.4, 0.1)
_SALT = 1 << 30  # a CPU generator takes the lower 32 bits of a seed


class OwnJumps:
    """Of the last `capacity` pictures that `network` made in a few jumps each, every jump: from its own state at t to where
    the velocity leads from there at s.

    What it holds depends on the weights of the time when it was computed, so it is part of a run's state.
    """

    def __init__(
        self,
        network: nn.Module,
        velocity: Velocity,
        captions: Callable[[int, int], Captions],
        shape: tuple[int, int, int],
        text_tokens: int,
        guidance_range: tuple[float, float],
        seed: int,
        capacity: int,
        device: torch.device = CPU,
    ) -> None:
        self.network = network
        self.velocity = velocity
        self.starts = PathStarts(captions, shape, text_tokens, guidance_range, seed, device)
        self.batches: deque[Jumps] = deque(maxlen=capacity // BATCH)
        self.end = 0

    def advance(self, end: int) -> None:
        """Have the jumps of the pictures before `end`, rounded down to whole batches; those passed over are not made."""
        end -= end % BATCH
        for first in range(max(self.end, end - BATCH * (self.batches.maxlen or 0)), end, BATCH):
            self.batches.append(self._made(first))
        self.end = max(self.end, end)

    def draw(self, count: int, generator: torch.Generator) -> Jumps:
        """Random jumps of random batches."""
        drawn = []
        for index in torch.randint(len(self.batches), (count,), generator=generator).tolist():
            batch = self.batches[index]
            drawn.append(batch.row(int(torch.randint(len(batch.t), (), generator=generator))))
        return Jumps.joined(drawn)

    def state_dict(self) -> dict[str, Any]:
        return {"end": self.end, "batches": [vars(batch) for batch in self.batches]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.end = state["end"]
        self.batches.clear()
        self.batches.extend(Jumps(**batch) for batch in state["batches"])

    @torch.no_grad()
    def _made(self, first: int) -> Jumps:
        start, generator = self.starts(_SALT + first)
        stops = _stops(generator)
        x, jumps = start.x, []
        for leg, stop in pairwise(stops):
            end = x
            for each in range(leg, stop):
                end = euler_leg(self.velocity, end, start, each)
            t, s = start.times[:, leg], start.times[:, stop]
            jumps.append(Jumps(x, t, end, s, start.guidance, start.text))
            x = x - (t - s).view(-1, 1, 1, 1) * self.network(x, t, s, start.guidance, start.text).float()
        return Jumps.joined(jumps)


def _stops(generator: torch.Generator) -> list[int]:
    """Legs from 0 to `LEGS` between which a batch jumps: evenly many apart, or, in the share `FREE_SHARE`, any."""
    count = OWN_JUMP_COUNTS[int(torch.multinomial(torch.tensor(OWN_JUMP_SHARES), 1, generator=generator))]
    if float(torch.rand((), generator=generator)) < FREE_SHARE:
        between = (torch.randperm(LEGS - 1, generator=generator)[: count - 1] + 1).sort().values
        return [0, *between.tolist(), LEGS]
    return list(range(0, LEGS + 1, LEGS // count))
