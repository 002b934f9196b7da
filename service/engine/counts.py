"""What forwards did, counted for the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from service.engine.reports import Tick
from service.engine.request import TextRequest
from service.engine.scheduler import Batch
from service.procedures.types import Axis, TokenRow


class Counts(NamedTuple):
    """Tokens of prompts computed for the first time, of guesses verified, of those that were right, and of output."""

    prompt: int = 0
    drafted: int = 0
    accepted: int = 0
    generated: int = 0

    @classmethod
    def of(cls, requests: Sequence[TextRequest]) -> Counts:
        """Of requests so far."""
        columns = ((r.prefilled, r.drafted, r.accepted, r.state.generated) for r in requests)
        return cls(*map(sum, zip(*columns, strict=True))) if requests else cls()

    def since(self, before: Counts) -> Counts:
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))

    def and_also(self, other: Counts) -> Counts:
        return Counts(*(one + another for one, another in zip(self, other, strict=True)))


def texts(batch: Batch) -> list[TextRequest]:
    return [item.request for item in batch.items if isinstance(item.request, TextRequest)]


def tick_of(batch: Batch, counts: Counts, forward_seconds: float, scheduler_seconds: float) -> Tick:
    """A batch that has run."""
    rows = [row for item in batch.items for row in item.rows]
    axes = Counter(str(row.axis if isinstance(row, TokenRow) else row.stage) for row in rows)
    tokens = [row for row in rows if isinstance(row, TokenRow)]
    return Tick(
        model=batch.model,
        expand_moves=axes[Axis.EXPAND],
        refine_moves=axes[Axis.REFINE],
        encode_moves=axes["encode"],
        decode_moves=axes["decode"],
        score_moves=axes["score"],
        rows=len(rows),
        tokens=batch.size if tokens else 0,
        prompt_tokens=counts.prompt,
        drafted_tokens=counts.drafted,
        accepted_tokens=counts.accepted,
        cached_tokens=batch.cached_tokens,
        revised_tokens=sum(len(row.wanted) for row in tokens if row.axis is Axis.REFINE),
        refine_steps=axes[Axis.REFINE],
        fill=batch.fill,
        held=batch.held,
        forward_seconds=forward_seconds,
        scheduler_seconds=scheduler_seconds,
    )
