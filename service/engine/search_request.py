"""A request that makes several latents for one picture, and answers with the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import msgspec

from service.engine.base_request import Bucket, Request
from service.engine.block_table import BlockTable
from service.engine.image_request import ImageRequest
from service.engine.messages import Done, FinishReason, Found, FromEngine, ImageWork, ModelCard, Submit
from service.procedures.chance import Purpose, uniform
from service.procedures.picture_rows import PictureRow, ScoreRow, Stage
from service.procedures.search import BestOf, Particles, in_place, potential, resampling_rows, systematic
from service.workers.types import Encoded, EncodeMove, Fork, LatentMove, LatentOutcome, Picture, RefineMove, Score, ScoreMove

SEEDS = 2**63
TOGETHER: tuple[Stage, ...] = ("refine", "decode", "score")
"""Latents that are behind go first, so that decoding and scoring come once for all."""


@dataclass(slots=True, eq=False)
class Candidate(ImageRequest):
    """One latent of a search, refined as a request of its own would be. Behind the rows of `looks` and at its end it has a
    `picture`, then a `score`, and waits for the others. `reference` is what its ancestors' scores came to; the next row goes
    on from the latent of `source`, where that is not its own."""

    looks: frozenset[int] = frozenset()
    picture: Picture | None = None
    score: float | None = None
    reference: float | None = None
    source: Fork | None = None

    def propose(self) -> list[PictureRow]:
        return [ScoreRow()] if self.picture is not None else ImageRequest.propose(self)

    def move(self, rows: Sequence[Any]) -> LatentMove:
        search = self.work.search
        assert search is not None
        if isinstance(rows[0], ScoreRow):
            assert self.picture is not None
            return ScoreMove(search.scorer, self.work.prompt, self.picture)
        move = ImageRequest.move(self, rows)
        if isinstance(move, EncodeMove):
            return replace(move, scorer=search.scorer)
        return replace(move, source=self.source) if isinstance(move, RefineMove) else move

    def fold(self, outcome: LatentOutcome, now: float) -> list[FromEngine]:
        if isinstance(outcome, Score):
            self.score = outcome.value
            return []
        self.source = None
        return ImageRequest.fold(self, outcome, now)

    def wants_preview(self) -> bool:
        return self.at in self.looks

    def _show(self, picture: Picture, now: float) -> list[FromEngine]:
        self.picture = picture
        return []

    def goes_on(self, ancestor: Candidate, reference: float) -> None:
        """From the ancestor's latent, which stays in its own slot, with what its evaluations left, but not from the noise of the
        row before."""
        row = self.rows[self.at - 1]
        fork = Fork(ancestor.table.blocks[0], ancestor.submit.seed, row.draw, row.coefficients[4])
        self.source = None if ancestor is self else fork
        self.picture, self.score, self.reference = None, None, reference
        for own, theirs in zip(self.reuse, ancestor.reuse, strict=True):
            own.memory = theirs.memory


@dataclass(slots=True, eq=False)
class SearchRequest(Request):
    """Refines several latents, each in a slot of its own and from a seed of its own, as rows of the same forwards as everybody
    else's; scores their pictures; and ends with the best. Those of `Particles` wait for one another at some rows, and are
    resampled there."""

    work: ImageWork = msgspec.UNSET  # type: ignore[assignment]
    search: BestOf | Particles = msgspec.UNSET  # type: ignore[assignment]
    candidates: list[Candidate] = field(default_factory=list)
    scored: int = 0

    first_stage: ClassVar[str] = "encode"

    @classmethod
    def begin(cls, submit: Submit, work: ImageWork, card: ModelCard) -> SearchRequest:
        search = work.search
        assert search is not None
        first = Candidate.begin(submit, work, card)
        if isinstance(search, Particles):
            first.looks = resampling_rows([row.coefficients[4] for row in first.rows], search.every)
        seeds = [(submit.seed + i) % SEEDS for i in range(search.count)]
        candidates = [
            replace(first, submit=msgspec.structs.replace(submit, seed=seed), table=BlockTable(), reuse=first.fresh_reuse())
            for seed in seeds
        ]
        return cls(submit, search.count, work=work, search=search, candidates=candidates)

    @property
    def bucket(self) -> Bucket:
        return self._due()[0].bucket

    def propose(self) -> list[PictureRow]:
        """A row of each latent that moves next; any number of them, from the first on, may be taken."""
        return [candidate.propose()[0] for candidate in self._due()]

    def moves(self, rows: Sequence[Any]) -> list[LatentMove]:
        """What the worker gets for so many of the rows that `propose` gave."""
        for candidate, slot in zip(self.candidates, self.table.blocks, strict=True):
            candidate.table.blocks = [slot]
        return [candidate.move([row]) for candidate, row in zip(self._due(), rows, strict=False)]

    def foresees(self, moves: Sequence[LatentMove]) -> bool:
        """Never: its latents move together, and wait for one another."""
        return False

    @property
    def left(self) -> int:
        return sum(candidate.left for candidate in self.candidates)

    def positions(self) -> int:
        """A slot for every latent."""
        return self.search.count

    def fold_all(self, outcomes: Sequence[LatentOutcome], now: float) -> list[FromEngine]:
        """Take in what came of the rows that were taken."""
        self.forwards += 1
        for candidate, outcome in zip(self._due(), outcomes, strict=False):
            if isinstance(outcome, Encoded):
                self.enters("denoise", now)
                for each in self.candidates:
                    each.encoded = outcome
            else:
                self.scored += isinstance(outcome, Score)
                candidate.fold(outcome, now)
        if len(self.entered) == 1 and all(candidate.refined for candidate in self.candidates):
            self.enters("decode", now)
        if any(candidate.score is None for candidate in self.candidates):
            return []
        if self.candidates[0].at < len(self.candidates[0].rows):
            self._resample()
            return []
        self.first_output, self.finished = now, "completed"
        return [self.end("completed", now, self._best())]

    def _due(self) -> list[Candidate]:
        """Whoever moves next, those first whose latent is another's to be read before that one moves on."""
        waiting = [candidate for candidate in self.candidates if candidate.score is None]
        if not waiting or waiting[0].encoded is None:
            return self.candidates[:1]
        stages = [candidate.propose()[0].stage for candidate in waiting]
        first = min(stages, key=TOGETHER.index)
        due = [candidate for candidate, stage in zip(waiting, stages, strict=True) if stage == first]
        return sorted(due, key=lambda candidate: (candidate.at, candidate.source is None))

    def _resample(self) -> None:
        search, at = self.search, self.candidates[0].at
        assert isinstance(search, Particles)
        looked = [
            potential(search.potential, search.temperature, each.reference, each.score)
            for each in self.candidates if each.score is not None
        ]  # fmt: skip
        lot = uniform(self.submit.seed, at, 0, Purpose.RESAMPLE)
        ancestors = in_place(systematic([log_weight for log_weight, _ in looked], lot))
        for candidate, i in zip(self.candidates, ancestors, strict=True):
            candidate.goes_on(self.candidates[i], looked[i][1])

    def _best(self) -> list[Found]:
        """As many as there are to be outputs, the best first. The seed of one gives it again: without a search where latents
        had nothing to do with one another, and otherwise with it."""
        ranked = sorted(self.candidates, key=lambda candidate: -(candidate.score or 0.0))
        own = isinstance(self.search, BestOf)
        return [
            Found((each if own else self).submit.seed, each.score, each.picture.width, each.picture.height, each.picture.rgb)
            for each in ranked[: self.work.outputs]
            if each.picture is not None and each.score is not None
        ]

    def end(self, reason: FinishReason, now: float, found: Sequence[Found] = ()) -> Done:
        nfe = sum(candidate.nfe for candidate in self.candidates)
        reused = sum(candidate.reused or 0 for candidate in self.candidates) if self.candidates[0].reuse else None
        done = self.done(reason, now, forwards=self.forwards, nfe=nfe, scored=self.scored, reused=reused)
        return msgspec.structs.replace(done, found=list(found))
