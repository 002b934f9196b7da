"""A request for a picture inside the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import msgspec

from service.engine.base_request import Bucket, Request
from service.engine.course import Course
from service.engine.latent_rows import latent_rows, sampler_parameters, takes_guidance
from service.engine.messages import Done, FinishReason, FromEngine, ImageWork, ModelCard, Preview, Submit
from service.procedures.picture_rows import DecodeRow, EncodeRow, LatentRow, PictureRow
from service.procedures.underway import Underway
from service.workers.types import (
    DecodeMove,
    Encoded,
    EncodeMove,
    Latent,
    LatentMove,
    LatentOutcome,
    Picture,
    RefineMove,
    Reuse,
)


@dataclass(slots=True, eq=False)
class ImageRequest(Request):
    """Refines a latent through the rows of a sampler table, once its text is a condition.

    `encoded` is what its text became; `latent` waits to be shown, as the picture or, before the last row, as a preview.
    `reuse` is what its evaluations leave for the next ones, of those with its text and of those without.
    """

    work: ImageWork = msgspec.UNSET  # type: ignore[assignment]
    card: ModelCard = msgspec.UNSET  # type: ignore[assignment]
    course: Course = msgspec.UNSET  # type: ignore[assignment]
    rows: list[LatentRow] = field(default_factory=list)
    at: int = 0
    nfe: int = 0
    encoded: Encoded | None = None
    latent: Latent | None = None
    reuse: tuple[Reuse, ...] = ()

    first_stage: ClassVar[str] = "encode"

    @classmethod
    def begin(cls, submit: Submit, work: ImageWork, card: ModelCard) -> Self:
        request = cls(submit, 1, work=work, card=card)
        request.take(submit.procedure, submit.parameters)
        return request

    def take(self, procedure: str, parameters: dict[str, Any]) -> None:
        """Run this procedure; only before the first row has run. Raises ValueError for parameters that have no table."""
        assert self.at == 0
        typed = sampler_parameters(procedure, parameters)
        self.rows = latent_rows(typed.table(self.card.noise, self._tokens), typed, self.card)
        self.course = Course(procedure, typed, len(self.rows))
        self.reuse = self.fresh_reuse()

    def fresh_reuse(self) -> tuple[Reuse, ...]:
        """Of a request that has not been evaluated; nothing where it does not reuse."""
        threshold = self.course.parameters.reuse_threshold
        return (Reuse(threshold), Reuse(threshold)) if threshold else ()

    @property
    def reused(self) -> int | None:
        """Evaluations that ran the first block alone; None where the request does not reuse."""
        return sum(row.reused for row in self.reuse) if self.reuse else None

    def hasten(self, rows: int) -> None:
        """Go on, when some rows have run, in at most so many: by jumps or, where the network knows none, by the same sampler's
        steps from here, of which one at least is made. As before where that takes as long, or the sampler cannot begin here, so
        near to the data."""
        assert 0 < self.at < len(self.rows) and rows > 0
        name, plan = self.course.going_on(self.card, self._jumps)
        here, steps = Underway.of(self.card.noise, *self.rows[self.at - 1].after), rows
        try:
            while True:
                plan = msgspec.structs.replace(plan, steps=steps)
                table = plan.table(here, self._tokens)
                if len(table) <= rows or steps == 1:
                    break
                steps = max(1, steps * rows // len(table))
        except ValueError:
            return
        left = latent_rows(table, plan, self.card)
        if sum(row.evaluations for row in left) >= self.evaluations_left:
            return
        self.rows[self.at :] = [replace(row, index=i, draw=i, start=None) for i, row in enumerate(left, self.at)]
        self.course.turn((name, plan), self.at)

    @property
    def _jumps(self) -> bool:
        """Whether the rest of the way may be jumps: the network must know them, and what guidance leads away from must not be
        lost by them."""
        own = takes_guidance(self.card, self.rows[self.at].takes_target)
        lost = bool(self.work.negative) and takes_guidance(self.card, True) and not own
        return "flow_map(x,t,s)" in self.card.signature and not lost

    @property
    def evaluations_left(self) -> int:
        return sum(row.evaluations for row in self.rows[self.at :])

    @property
    def evaluations_a_row(self) -> int:
        """Of what `hasten` leaves."""
        target = self._jumps or self.rows[self.at].takes_target
        paired = self.course.parameters.guidance != 1.0 and not takes_guidance(self.card, target)
        return 2 if paired else 1

    @property
    def _may_be_paired(self) -> bool:
        """Whether rows that take the place of these may be evaluated without the text as well."""
        guided = any(choice.parameters["guidance"] != 1.0 for choice in self.submit.choices)
        return guided and self.card.guidance_input != "always"

    @property
    def _tokens(self) -> int:
        return self.card.tokens(self.work.width, self.work.height)

    @property
    def bucket(self) -> Bucket:
        stage = self.propose()[0].stage
        return (stage, 0, 0) if stage == "encode" else (stage, self.work.width, self.work.height)

    def propose(self) -> list[PictureRow]:
        if self.encoded is None:
            paired = any(row.paired for row in self.rows) or self._may_be_paired
            return [EncodeRow((self.work.prompt, self.work.negative) if paired else (self.work.prompt,), bool(self.work.image))]
        return [DecodeRow() if self.latent is not None else self.rows[self.at]]

    def move(self, rows: Sequence[Any]) -> LatentMove:
        """What the worker gets for the rows that `propose` gave."""
        row, work = rows[0], self.work
        if isinstance(row, EncodeRow):
            return EncodeMove(row.texts, work.width, work.height, work.image, work.mask, adapters=tuple(work.adapters))
        if isinstance(row, DecodeRow):
            assert self.latent is not None
            return DecodeMove(self.latent)
        assert isinstance(row, LatentRow) and self.encoded is not None
        final = row.index == len(self.rows) - 1
        return RefineMove(
            row, self.table.blocks[0], self.submit.seed, work.width, work.height, self.encoded, final or self.wants_preview(),
            final, tuple(work.adapters), reuse=self.reuse,
        )  # fmt: skip

    @property
    def refined(self) -> bool:
        """Whether all rows have run."""
        return self.at == len(self.rows)

    def moves(self, rows: Sequence[Any]) -> list[LatentMove]:
        return [self.move(rows)]

    def foresees(self, moves: Sequence[LatentMove]) -> bool:
        """Whether the outcome of these is known before they run: a row that shows nothing gives nothing, or fails."""
        return all(isinstance(move, RefineMove) and not move.shown for move in moves)

    def fold_all(self, outcomes: Sequence[LatentOutcome], now: float) -> list[FromEngine]:
        return self.fold(outcomes[0], now)

    @property
    def left(self) -> int:
        """As many for each row as for the next."""
        rows = len(self.rows) - self.at
        return rows * self.rows[self.at].evaluations if rows else 0

    def positions(self) -> int:
        """One slot for the latent."""
        return 1

    def wants_preview(self) -> bool:
        return self._shows(self.at + 1, len(self.rows))

    def _shows(self, row: int, rows: int) -> bool:
        """Whether there is a preview behind this one of so many, from 1."""
        previews = self.work.previews
        every = max(1, rows // (previews + 1)) if previews else self.work.preview_every
        return every > 0 and row % every == 0 and row < rows

    def fold(self, outcome: LatentOutcome, now: float) -> list[FromEngine]:
        """Take in one forward: conditions, a latent that is to be shown or None, or the picture."""
        self.forwards += 1
        match outcome:
            case Encoded():
                self.encoded = outcome
                self.enters("denoise", now)
            case Picture() if self.latent is not None:
                self.latent = None
                return self._show(outcome, now)
            case _:
                self.nfe += self.rows[self.at].evaluations
                self.at += 1
                if self.refined:
                    self.enters("decode", now)
                if isinstance(outcome, Picture):
                    return self._show(outcome, now)
                assert outcome is None or isinstance(outcome, Latent)
                self.latent = outcome
        return []

    def _show(self, picture: Picture, now: float) -> list[FromEngine]:
        self.first_output = self.first_output or now
        if self.at == len(self.rows):
            self.finished = "completed"
            return [self.end("completed", now, picture)]
        level = self.rows[self.at - 1].level
        return [Preview(self.id, self.at, len(self.rows), level, picture.width, picture.height, picture.rgb)]

    def end(self, reason: FinishReason, now: float, picture: Picture | None = None) -> Done:
        choices = self.submit.choices
        planned = choices[0].nfe if choices else None
        done = self.done(
            reason, now, picture, forwards=self.forwards, nfe=self.nfe, planned_nfe=planned, reused=self.reused
        )  # fmt: skip
        return msgspec.structs.replace(done, ran=self.course.described(len(self.rows))) if choices else done
