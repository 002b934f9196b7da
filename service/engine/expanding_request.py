"""A request for a picture whose tokens are made set by set, each refined from noise under what came before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from service.engine.image_request import ImageRequest
from service.engine.messages import FromEngine, Preview
from service.procedures.masked_autoregressive import MaskedAutoregressiveParameters
from service.procedures.picture_rows import ExpandRow, PictureRow
from service.workers.types import Encoded, ExpandMove, LatentMove, LatentOutcome, Picture, RefineMove


@dataclass(slots=True, eq=False)
class ExpandingRequest(ImageRequest):
    """`rows` are those of one set of tokens, and `at` counts within it. `drawn` is what the expand row of the present set gave:
    its condition, what is known and where it is; None before that row has run."""

    sets: list[tuple[int, ...]] = field(default_factory=list)
    turn: int = 0
    drawn: Encoded | None = None

    def take(self, procedure: str, parameters: dict[str, Any]) -> None:
        ImageRequest.take(self, procedure, parameters)
        assert isinstance(self.course.parameters, MaskedAutoregressiveParameters)
        self.sets = self.course.parameters.sets(self._tokens, self.submit.seed)

    def propose(self) -> list[PictureRow]:
        if self.encoded is not None and self.latent is None and self.drawn is None:
            return [ExpandRow(any(row.paired for row in self.rows))]
        return ImageRequest.propose(self)

    def move(self, rows: Sequence[Any]) -> LatentMove:
        if isinstance(rows[0], ExpandRow):
            assert self.encoded is not None
            known = tuple(position for done in self.sets[: self.turn] for position in done)
            return ExpandMove(
                self.table.blocks[0], self.work.width, self.work.height, self.encoded, known, self.sets[self.turn], rows[0].paired
            )  # fmt: skip
        move = ImageRequest.move(self, rows)
        if not isinstance(move, RefineMove):
            return move
        assert self.drawn is not None
        final = move.final and self.turn == len(self.sets) - 1
        return replace(move, encoded=self.drawn, final=final, shown=final or self.wants_preview())

    @property
    def step(self) -> int:
        """Refine rows that have run, of all sets."""
        return self.turn * len(self.rows) + self.at

    @property
    def steps(self) -> int:
        return len(self.sets) * len(self.rows)

    @property
    def refined(self) -> bool:
        return self.step == self.steps

    def wants_preview(self) -> bool:
        return self._shows(self.step + 1, self.steps)

    def fold(self, outcome: LatentOutcome, now: float) -> list[FromEngine]:
        if isinstance(outcome, Encoded) and self.encoded is not None:
            self.forwards += 1
            self.nfe += ExpandRow(len(outcome.conditions) > 1).evaluations
            self.drawn = outcome
            return []
        events = ImageRequest.fold(self, outcome, now)
        if self.at == len(self.rows) and self.turn < len(self.sets) - 1:
            self.turn, self.at, self.drawn = self.turn + 1, 0, None
        return events

    def _show(self, picture: Picture, now: float) -> list[FromEngine]:
        if self.step == self.steps:
            return ImageRequest._show(self, picture, now)
        self.first_output = self.first_output or now
        left = 1.0 - self.step / self.steps
        return [Preview(self.id, self.step, self.steps, left, picture.width, picture.height, picture.rgb)]
