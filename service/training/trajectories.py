"""Paths of a velocity from noise to data: what a flow map is distilled from.

Every path is a guided ODE solution of a teacher's velocity, kept at `LEGS + 1` times; a flow map from t to s has to lead
from one of its points to a later one. (Knowledge distillation, arXiv 2101.02388, for every pair of times as in flow map
matching, arXiv 2406.07507.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.training.precision import CPU

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LEGS = 16
BATCH = 16
PATH_SALT = 1 << 40
CANONICAL_SHIFT = 3.0
JUMP_COUNTS = (1, 2, 4, 8)
JUMP_SHARES = (0.2, 0.2, 0.35, 0.25)
FREE_SHARE = 0.3


@dataclass(frozen=True)
class Captions:
    """Caption ids [B, T] and the ids [B, T] of the empty caption."""

    text: Tensor
    empty: Tensor

    def to(self, device: torch.device) -> Self:
        """On this device; from pinned memory without waiting for the copy."""
        return replace(self, **{item.name: getattr(self, item.name).to(device, non_blocking=True) for item in fields(self)})

    def pin_memory(self) -> Self:
        """In memory from which a GPU copies while it computes."""
        return replace(self, **{item.name: getattr(self, item.name).pin_memory() for item in fields(self)})


@dataclass(frozen=True)
class Jumps:
    """What a flow map learns: from x at t to `end` at s <= t, under a guidance scale. x, end [B, C, H, W], the rest [B]."""

    x: Tensor
    t: Tensor
    end: Tensor
    s: Tensor
    guidance: Tensor
    text: Tensor

    def rows(self, which: Tensor) -> Jumps:
        """Some of the rows, by their numbers or by a mask."""
        return Jumps(*(getattr(self, item.name)[which] for item in fields(self)))

    @property
    def velocity(self) -> Tensor:
        """The average velocity over [s, t], (x - end) / (t - s)."""
        return (self.x - self.end) / (self.t - self.s).view(-1, 1, 1, 1)


Velocity = Callable[[Tensor, Tensor, Tensor, Captions], Tensor]
"""(x [B, C, H, W], times [B], guidance [B], captions) -> the guided velocity, like x."""


@torch.no_grad()
def guided_velocity(teacher: nn.Module, x: Tensor, t: Tensor, guidance: Tensor, captions: Captions) -> Tensor:
    """v_u + w (v_c - v_u) of the teacher at guidance input 1 (classifier-free guidance, arXiv 2207.12598)."""
    times = t.repeat(2)
    both = teacher(x.repeat(2, 1, 1, 1), times, times, torch.ones_like(times), torch.cat([captions.text, captions.empty])).float()
    conditional, unconditional = both.chunk(2)
    return torch.lerp(unconditional, conditional, guidance.view(-1, 1, 1, 1))


def path_times(count: int, generator: torch.Generator) -> Tensor:
    """[count, LEGS + 1] times from 1 to 0: half the paths on the grid of `CANONICAL_SHIFT`, the others on random ones."""
    device = generator.device
    even = torch.linspace(1, 0, LEGS + 1, device=device).expand(count, -1)
    jitter = (torch.rand(count, LEGS + 1, generator=generator, device=device) - 0.5) / (2 * LEGS)
    jitter[:, [0, -1]] = 0.0
    free = torch.rand(count, 1, generator=generator, device=device) < 0.5
    shift = torch.where(free, 1 + 4 * torch.rand(count, 1, generator=generator, device=device), CANONICAL_SHIFT)
    even = torch.where(free, even + jitter, even)
    return shift * even / (1 + (shift - 1) * even)


@dataclass(frozen=True)
class PathStart:
    """Noise x [B, C, H, W], captions, their ids padded [B, text tokens], guidance [B] and the times [B, LEGS + 1] of paths."""

    x: Tensor
    captions: Captions
    text: Tensor
    guidance: Tensor
    times: Tensor


@dataclass(frozen=True)
class PathStarts:
    """Where paths begin, `batch` at a time: those from `first` on are a function of seed, `first`, device and `batch`.

    `captions(n, count)` gives the captions of paths n, n + 1, ..., n + count - 1; they are padded with id 0.
    """

    captions: Callable[[int, int], Captions]
    shape: tuple[int, int, int]
    text_tokens: int
    guidance_range: tuple[float, float]
    seed: int
    device: torch.device = CPU
    batch: int = BATCH

    def __call__(self, first: int) -> PathStart:
        """The start of paths first, first + 1, ... of a batch."""
        generator = torch.Generator(self.device).manual_seed(self.seed_of(first))
        captions = self.captions(first, self.batch).to(self.device)
        times = path_times(self.batch, generator)
        low, high = self.guidance_range
        guidance = low * (high / low) ** torch.rand(self.batch, generator=generator, device=self.device)
        x = torch.randn(self.batch, *self.shape, generator=generator, device=self.device)
        text = F.pad(captions.text, (0, self.text_tokens - captions.text.shape[1]))
        return PathStart(x, captions, text, guidance, times)

    def seed_of(self, first: int) -> int:
        """For what is drawn for the batch from `first` on."""
        return (self.seed + 1) * 1_000_003 + PATH_SALT + first


def euler_leg(velocity: Velocity, x: Tensor, start: PathStart, leg: int) -> Tensor:
    """Where the velocity leads from x at the time of point `leg` of a path to that of the next, in one Euler step."""
    t, s = start.times[:, leg], start.times[:, leg + 1]
    return x + (s - t).view(-1, 1, 1, 1) * velocity(x, t, start.guidance, start.captions)


class TrajectoryBank:
    """The last `capacity` paths of a velocity, which works on the device of the `starts`. Path n is a function of their seed and
    n alone, so a resumed run has the same ones.

    Where `right(n, ends)` says which of the pictures [B, C, H, W] that paths n, n + 1, ... end in are right, those that are not
    give their places to copies of right ones of their batch, if it has any.
    """

    def __init__(
        self,
        velocity: Velocity,
        starts: PathStarts,
        capacity: int,
        right: Callable[[int, Tensor], list[bool]] | None = None,
    ) -> None:
        if capacity % starts.batch:
            raise ValueError(f"a bank of {capacity} paths cannot be filled {starts.batch} at a time")
        self.velocity = velocity
        self.right = right
        self.starts = starts
        self.device = device = starts.device
        self.points = torch.zeros(capacity, LEGS + 1, *starts.shape, device=device)
        self.times = torch.zeros(capacity, LEGS + 1, device=device)
        self.guidance = torch.zeros(capacity, device=device)
        self.text = torch.zeros(capacity, starts.text_tokens, dtype=torch.int64, device=device)
        self.end = 0

    def advance(self, end: int) -> None:
        """Have the paths before `end`, rounded down to whole batches; those that the bank has no room for are passed over."""
        batch = self.starts.batch
        end -= end % batch
        for first in range(max(self.end, end - len(self.points)), end, batch):
            self._compute(first)
        self.end = max(self.end, end)

    def draw(self, count: int, generator: torch.Generator) -> Jumps:
        """Jumps along random paths: one of 1, 2, 4 or 8 with equally many legs; the share `FREE_SHARE` between any two times.
        The generator is a CPU's or one of the bank's device, and draws there."""
        where = generator.device
        paths = torch.randint(len(self.points), (count,), generator=generator, device=where)
        shares, counts = _jump_choices(where)
        legs = LEGS // counts[torch.multinomial(shares, count, replacement=True, generator=generator)]
        start = (torch.rand(count, generator=generator, device=where) * (LEGS // legs)).long() * legs
        ends = torch.rand(count, LEGS + 1, generator=generator, device=where).argsort(dim=1)[:, :2].sort(dim=1).values
        free = torch.rand(count, generator=generator, device=where) < FREE_SHARE
        start, stop = torch.where(free, ends[:, 0], start), torch.where(free, ends[:, 1], start + legs)
        return self.jumps(paths, start, stop)

    def draw_to_data(self, count: int, generator: torch.Generator) -> Jumps:
        """Jumps from any place of random paths to their ends."""
        paths = torch.randint(len(self.points), (count,), generator=generator, device=generator.device)
        start = torch.randint(LEGS, (count,), generator=generator, device=generator.device)
        return self.jumps(paths, start, torch.full_like(start, LEGS))

    def jumps(self, paths: Tensor, start: Tensor, stop: Tensor) -> Jumps:
        """Those along `paths` [B] from their points `start` [B] to `stop` [B]."""
        paths, start, stop = (index.to(self.device) for index in (paths, start, stop))
        return Jumps(
            self.points[paths, start],
            self.times[paths, start],
            self.points[paths, stop],
            self.times[paths, stop],
            self.guidance[paths],
            trimmed(self.text[paths]),
        )

    @torch.no_grad()
    def _compute(self, first: int) -> None:
        start, batch = self.starts(first), self.starts.batch
        points = [start.x]
        for leg in range(LEGS):
            points.append(euler_leg(self.velocity, points[-1], start, leg))
        kept = _kept(self.right(first, points[-1].cpu())) if self.right else list(range(batch))
        place = first % len(self.points)
        rows = slice(place, place + batch)
        self.points[rows] = torch.stack(points, 1)[kept]
        self.times[rows], self.guidance[rows] = start.times[kept], start.guidance[kept]
        self.text[rows] = start.text[kept]


def _kept(right: list[bool]) -> list[int]:
    """The paths of a batch that are kept, as often as fills it: those that are right, or all where none is."""
    kept = [i for i, yes in enumerate(right) if yes] or list(range(len(right)))
    return [kept[i % len(kept)] for i in range(len(right))]


Rows = TypeVar("Rows", bound="DataclassInstance")
"""A dataclass of tensors with a row each, `text` [B, T] among them."""


def joined_rows(parts: Sequence[Rows]) -> Rows:
    """The rows of all, in order; `text` is padded with id 0 to as many ids as the longest has."""
    columns = {item.name: [getattr(part, item.name) for part in parts] for item in fields(parts[0])}
    longest = max(text.shape[1] for text in columns["text"])
    columns["text"] = [F.pad(text, (0, longest - text.shape[1])) for text in columns["text"]]
    return replace(parts[0], **{name: torch.cat(tensors) for name, tensors in columns.items()})


@cache
def _jump_choices(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(JUMP_SHARES, device=device), torch.tensor(JUMP_COUNTS, device=device)


def trimmed(text: Tensor) -> Tensor:
    """Caption ids [B, T] without the columns at the end, from the second on, that are padding (0) in every row. On a GPU as they
    are: the host would have to wait for it to know how many."""
    if text.device.type == "cuda":
        return text
    return text[:, : max(1, int((text != 0).any(0).sum()))]
