"""The times of a variance-preserving process: training timesteps 0 ... T - 1 with alpha^2 + sigma^2 = 1 (DDPM, arXiv
2006.11239), and what was trained on them."""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from operator import mul
from typing import Literal

import msgspec

from service.procedures.schedules import Schedule, evenly, spaced
from service.procedures.tables import Node

Spacing = Literal["leading", "trailing", "linspace", "distilled"]


class Betas(msgspec.Struct, frozen=True, kw_only=True):
    """The variance that each training step adds: beta_i over `count` steps from `first` to `last`, linear, linear in the root
    ("scaled_linear"; latent diffusion), or by the squared cosine of arXiv 2102.09672; or as given in `trained`.

    zero_terminal_snr: rescaled so that the last step is pure noise (arXiv 2305.08891, algorithm 1).
    last_product: the smallest product of alpha^2 that the last step may have, where a sampler divides by it.
    """

    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "trained"] = "linear"
    count: int = 1000
    first: float = 0.0001
    last: float = 0.02
    trained: tuple[float, ...] = ()
    zero_terminal_snr: bool = False
    last_product: float = 0.0

    def values(self) -> list[float]:
        match self.schedule:
            case "trained":
                return list(self.trained)
            case "linear":
                return evenly(self.first, self.last, self.count)
            case "scaled_linear":
                return [root * root for root in evenly(math.sqrt(self.first), math.sqrt(self.last), self.count)]
            case "squaredcos_cap_v2":
                bars = [math.cos((i / self.count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(self.count + 1)]
                return [min(1.0 - after / before, 0.999) for before, after in pairwise(bars)]


@lru_cache(maxsize=64)
def products(betas: Betas) -> tuple[float, ...]:
    """alpha^2 of every training timestep: the cumulative product of 1 - beta, rounded to single precision where training
    rounds it. That matters at the first timesteps, where sigma^2 = 1 - alpha^2 is small."""
    kept = [_single(1.0 - _single(beta)) for beta in betas.values()]
    bars = [_single(bar) for bar in accumulate(kept, mul)]
    if betas.zero_terminal_snr:
        roots = [math.sqrt(bar) for bar in bars]
        factor = roots[0] / (roots[0] - roots[-1])
        bars = [_single(((root - roots[-1]) * factor) ** 2) for root in roots]
        kept = [bars[0], *(_single(after / before) for before, after in pairwise(bars))]
        bars = [_single(bar) for bar in accumulate((_single(1.0 - _single(1.0 - share)) for share in kept), mul)]
    bars[-1] = max(bars[-1], betas.last_product)
    return tuple(bars)


def _single(number: float) -> float:
    """The nearest number of float32."""
    return float(struct.unpack("<f", struct.pack("<f", number))[0])


@lru_cache(maxsize=64)
def ratios(betas: Betas) -> tuple[float, ...]:
    """sigma / alpha of every training timestep, rising; infinite where alpha is 0."""
    return tuple(math.sqrt((1.0 - bar) / bar) if bar > 0.0 else math.inf for bar in products(betas))


class TrainingTimes(msgspec.Struct, frozen=True, kw_only=True, tag="vp"):
    """Training timesteps, some of them chosen (arXiv 2305.08891, table 2) or found by their noise.

    spacing: "linspace" from T - 1 to 0, "leading" multiples of T // N, "trailing" from T - 1 down by T / N; "distilled" some of
        the `distilled` ones that a latent consistency model was trained on (arXiv 2310.04378).
    offset: added where the spacing is leading.
    end_included: whether the N timesteps reach the end of the range, or are the first N of N + 1.
    whole: whole timesteps only; else sigma / alpha is interpolated between them.
    schedule: other than "linear", the range of the timesteps that were spaced is spaced anew in sigma / alpha; with
        `full_range`, that of all of them. `sigma_min` and `sigma_max` bound it where given.
    lambda_min: timesteps with log(alpha / sigma) below it are left out.
    final: where the last step goes: to the data, or to the noise of timestep 0.
    start: standard deviation of the first state: 1, or sigma of the first node.
    """

    betas: Betas = Betas()
    spacing: Spacing = "leading"
    offset: int = 0
    end_included: bool = True
    whole: bool = True
    schedule: Schedule = "linear"
    full_range: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    lambda_min: float | None = None
    distilled: int = 50
    final: Literal["data", "lowest"] = "data"
    start: Literal["unit", "level"] = "unit"

    def nodes(self, steps: int, schedule: Schedule | None, shift: float | None, tokens: int) -> list[Node]:
        """`steps` nodes, without the last. Raises ValueError for more steps than timesteps, and for a shift."""
        if shift is not None:
            raise ValueError("`shift` moves the times of a flow; this model was trained on timesteps of a diffusion")
        schedule = schedule or self.schedule
        chosen = self._spaced(steps)
        if schedule == "linear":
            return [self._node(t) for t in chosen]
        every = ratios(self.betas)
        high, low = (every[-1], every[0]) if self.full_range else (self._ratio(chosen[0]), self._ratio(chosen[-1]))
        high, low = self.sigma_max or high, self.sigma_min or low
        if schedule == "cosine":
            found = [math.tan(angle) for angle in evenly(math.atan(high), math.atan(low), steps)]
        else:
            found = spaced(schedule, high, low, steps)
        return [self._found(ratio, schedule) for ratio in found]

    def given(self, timesteps: Sequence[float]) -> list[Node]:
        """Nodes at these timesteps. Raises ValueError outside 0 ... T - 1, or between whole ones where only these are known."""
        last = self._count - 1
        if not all(0.0 <= t <= last and (not self.whole or t == int(t)) for t in timesteps):
            kind = "whole numbers" if self.whole else "numbers"
            raise ValueError(f"`timesteps` of this model are {kind} from {last} (noise) to 0, not {list(timesteps)}")
        return [self._node(t) for t in timesteps]

    def at(self, ratio: float) -> Node:
        """The node with sigma / alpha = ratio; its timestep is interpolated between those trained."""
        return self._found(ratio, "linear")

    def onwards(self, node: Node, steps: int, shift: float | None, tokens: int) -> list[Node]:
        """`steps` nodes from this one on, which is the first, even in the angle atan(sigma / alpha)."""
        if shift is not None:
            raise ValueError("`shift` moves the times of a flow; this model was trained on timesteps of a diffusion")
        last = self.last()
        angles = evenly(math.atan2(node.sigma, node.alpha), math.atan2(last.sigma, last.alpha), steps + 1)[1:-1]
        return [node, *(self.at(math.tan(angle)) for angle in angles)]

    def last(self) -> Node:
        return Node(1.0, 0.0, 0.0) if self.final == "data" else self._node(0)

    def first_state(self, node: Node) -> tuple[float, float]:
        """Noise of the chosen standard deviation."""
        return 0.0, 1.0 if self.start == "unit" else node.sigma

    @property
    def _count(self) -> int:
        return len(products(self.betas))

    def _spaced(self, steps: int) -> list[float]:
        total = self._count
        usable = total
        if self.lambda_min is not None:
            usable = bisect_right(ratios(self.betas), math.exp(-self.lambda_min))
        limit = min(usable, self.distilled) if self.spacing == "distilled" else usable
        if steps > limit:
            raise ValueError(f"`steps` must be at most {limit}, the timesteps that this model was trained on, not {steps}")
        between = steps if self.end_included else steps + 1
        match self.spacing:
            case "linspace":
                times = evenly(usable - 1.0, 0.0, between)[:steps]
            case "leading":
                stride = usable // between
                times = [float(stride * (between - 1 - i) + self.offset) for i in range(steps)]
            case "trailing":
                times = [round(usable * (steps - i) / steps) - 1.0 for i in range(steps)]
            case "distilled":
                stride = total // self.distilled
                known = [stride * i - 1.0 for i in range(self.distilled, 0, -1)]
                times = [known[i * len(known) // steps] for i in range(steps)]
        times = [float(round(t)) for t in times] if self.whole else times
        if times[0] > total - 1.0 or any(before <= after for before, after in pairwise(times)):
            raise ValueError(f"`steps` {steps} is more than the spacing of this model's {total} timesteps allows")
        return times

    def _ratio(self, t: float) -> float:
        every, below = ratios(self.betas), int(t)
        if t == below:
            return every[below]
        return every[below] + (t - below) * (every[below + 1] - every[below])

    def _node(self, t: float) -> Node:
        if t == int(t):
            product = products(self.betas)[int(t)]
            return Node(math.sqrt(product), math.sqrt(1.0 - product), t)
        return _preserving(self._ratio(t), t)

    def _found(self, ratio: float, schedule: Schedule) -> Node:
        """The node of a ratio, its timestep interpolated over log sigma / alpha; whole ones are rounded for karras, and down
        for others, as the field's schedulers do."""
        if not math.isfinite(ratio):
            return self._node(self._count - 1)
        every = ratios(self.betas)
        above = min(max(bisect_right(every, ratio), 1), len(every) - 1)
        low, high = every[above - 1], every[above]
        share = math.log(max(ratio, 1e-10) / low) / math.log(high / low) if math.isfinite(high) else 0.0
        time = above - 1 + min(max(share, 0.0), 1.0)
        if self.whole:
            time = float(round(time) if schedule == "karras" else math.floor(time))
        return _preserving(ratio, time)


def _preserving(ratio: float, time: float) -> Node:
    scale = math.hypot(1.0, ratio)
    return Node(1.0 / scale, ratio / scale, time)
