"""What a row of a request remembers of its last full evaluation, so that a later one may reuse it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Added:
    """What the blocks of one list behind its first one, or all of them, added to one stream of tokens: [S, d].

    `shortened`: the last block gives fewer tokens than the list was given.
    """

    residual: Tensor
    shortened: bool

    def to(self, entered: Tensor) -> Tensor:
        """The stream behind these blocks for tokens [S', d] that enter them now. Behind a stream may be padding, more or less
        of it than last time: it is no part of the row."""
        if self.shortened:
            return entered[: len(self.residual)] + self.residual
        missing = len(entered) - len(self.residual)
        return entered + (F.pad(self.residual, (0, 0, 0, missing)) if missing > 0 else self.residual[: len(entered)])


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a full evaluation: the first block's residual [S, d], and what was added behind it, a list of blocks after another,
    a stream after another (None: a stream that the last block drops)."""

    first: Tensor
    rest: tuple[tuple[Added | None, ...], ...]


@dataclass(slots=True)
class Reuse:
    """What one row of a request remembers from evaluation to evaluation; a conditional and an unconditional row have one each.

    `threshold`: relative L1 change of the first block's residual up to which the other blocks are skipped; 0: never.
    `reused` counts the evaluations that were.
    """

    threshold: float
    reused: int = 0
    memory: Memory | None = None

    def __post_init__(self) -> None:
        if not self.threshold >= 0.0:
            raise ValueError(f"the threshold must not be negative, but is {self.threshold}")


@contextmanager
def all_or_nothing(rows: Sequence[Reuse]) -> Iterator[None]:
    """For one forward: where it fails, no row remembers anything of its evaluations, which are run again."""
    before = [(row, row.reused, row.memory) for row in rows]
    try:
        yield
    except Exception:
        for row, reused, memory in before:
            row.reused, row.memory = reused, memory
        raise


def relative_change(residual: Tensor, former: Tensor) -> Tensor:
    """mean |r - r'| / mean |r'| of residuals [S, d]; not a number where nothing was added, now and then."""
    former = former.float()
    return (residual.float() - former).abs().mean() / former.abs().mean()
