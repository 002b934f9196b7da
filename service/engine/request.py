"""A request for text inside the engine: its state and its procedure, proposing moves and folding in what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import lcm

import msgspec

from service.engine.block_table import BlockTable
from service.engine.drafting import Acceptance
from service.engine.drawing import Drawing
from service.engine.going_ahead import has_row_ahead, known, row_ahead
from service.engine.grammar import Following, GrammarError, grammar_failure
from service.engine.image_request import ImageRequest
from service.engine.messages import (
    Done,
    FinishReason,
    FromEngine,
    ModelCard,
    Revision,
    Scores,
    Submit,
    TextWork,
    Tokens,
)
from service.engine.scoring import Scoring, logprobs
from service.engine.search_request import SearchRequest
from service.engine.sharing_request import SharingRequest
from service.procedures.autoregressive import Autoregressive
from service.procedures.drafts import accepted, comb, deepest
from service.procedures.registry import PROCEDURES
from service.procedures.speculative import KEEPING, SpeculativeParameters
from service.procedures.types import UNKNOWN, Draft, TokenProcedure, TokenRow, TokenState
from service.workers.block_pool import BlockPool
from service.workers.types import Deferred, Draws, TokenRead

REVISION_SECONDS = 0.05
"""Between two canvases that a client is shown, at least."""


@dataclass(slots=True, eq=False)
class TextRequest(SharingRequest):
    """Expands a prompt. `grammar` is where it stands in the one it must follow; `drawing` says how its tokens are drawn. Of a
    request that drafts, `drafter` guesses up to `draft_tokens` a branch and `width` at a place. `shape` is the tree of all of
    these, best first, of which the lane wants the first `drafting` next.
    `scoring` comes first, where the prompt's own log-probabilities are asked for.
    """

    work: TextWork = msgspec.UNSET  # type: ignore[assignment]
    procedure: TokenProcedure = msgspec.UNSET  # type: ignore[assignment]
    grammar: Following | None = None
    drawing: Drawing = msgspec.UNSET  # type: ignore[assignment]
    drafter: str = ""
    draft_tokens: int = 0
    width: int = 1
    shape: Draft = field(default_factory=lambda: Draft((), ()))
    drafting: int = 0
    drafted: int = 0
    accepted: int = 0
    adaptive: bool = True
    deferred: Deferred = field(default_factory=Deferred)
    acceptance: Acceptance = field(default_factory=Acceptance)
    revised: float | None = None
    carried: object | None = None

    @classmethod
    def begin(
        cls, submit: Submit, work: TextWork, card: ModelCard, block_size: int, grammar: Following | None = None
    ) -> TextRequest:
        spec = PROCEDURES[submit.procedure]
        assert spec.begin is not None
        parameters = msgspec.convert(submit.parameters, spec.parameters)
        procedure = spec.begin(parameters)
        limit = len(work.prompt) + work.max_tokens
        stops = frozenset(work.stop_token_ids) | (frozenset() if work.ignore_eos else frozenset(card.eos_token_ids))
        grid = card.block_lengths[0] if card.attention == "block" else None
        state = TokenState(
            list(work.prompt), len(work.prompt), limit, card.mask_token_id, card.attention, grid, card.shift,
            seed=submit.seed, vocabulary=card.vocab_size, stops=stops, floor=len(work.prompt) + work.min_tokens,
            conditioned=card.conditioned,
        )  # fmt: skip
        need = -(-(limit + procedure.scratch(0)) // block_size)
        request = cls(
            submit, need, BlockTable(lcm(block_size, grid or 1) // block_size), state=state, work=work, procedure=procedure,
            grammar=grammar, drawing=Drawing.of(submit, work, grammar),
        )  # fmt: skip
        if work.score_prompt:
            assert submit.procedure == "autoregressive", "only the next token's distribution scores a prompt"
            request.scoring = Scoring(len(work.prompt) - 1)
        if isinstance(parameters, SpeculativeParameters):
            request.drafter, request.draft_tokens = parameters.drafter, parameters.draft_tokens or 0
            request.adaptive = parameters.adaptive
            request.width = parameters.width
            chain = (0,) * request.draft_tokens
            request.shape = comb(chain, [(0,) * (request.width - 1)] * request.draft_tokens)
            request.table.root = parameters.drafter.encode() if parameters.drafter in KEEPING else b""
        return request

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return len(self.state.tokens) >= self.state.limit and not self.owes_scores

    @property
    def waits(self) -> bool:
        return self.unknown > 0 and not self.goes_ahead

    @property
    def goes_ahead(self) -> bool:
        """Whether a row can be computed behind a token that is being drawn."""
        plain = isinstance(self.procedure, Autoregressive) and self.scoring is None and not self.drawing.hangs_on_tokens
        return plain and has_row_ahead(self.state, self.unknown)

    def foresees(self, whole: bool) -> bool:
        """Whether the outcome of a move is known before it runs: a chunk of a prefill gives nothing, or fails."""
        return not whole and not self.owes_scores and self.drafter not in KEEPING

    def propose(self) -> list[TokenRow]:
        if self.unknown:
            assert self.goes_ahead and self.unknown == 1
            return [row_ahead(self.state)]
        if self.scoring is not None and self.owes_scores:
            return [self.scoring.propose(self.state)]
        rows = self.procedure.propose(self.state)
        if not rows[-1].drafts:
            return rows
        draft = rows[-1].draft()
        best = self.acceptance.arranged(self.drawing.worth(self.state, draft))
        if best != draft:
            self.state.draft = best
            return self.procedure.propose(self.state)
        return rows

    def gains(self, draft: Draft, pays: bool) -> list[float]:
        """What each of the guesses gains, in tokens of output. `pays`: whether guessing does, of late; whoever wants its
        guesses whatever they cost is given all of them."""
        if not self.adaptive:
            return [float("inf")] * len(draft.tokens)
        return self.acceptance.gains(draft) if pays else []

    def wishes(self, pays: bool) -> list[float]:
        """The same of the next move's, a token computed: by masks one costs several."""
        self.shape = self.acceptance.arranged(self.shape)
        gains = self.gains(self.shape, pays)
        cost = (self.procedure.scratch(self.draft_tokens + 1) / self.draft_tokens) if self.drafter == "mask" else 1.0
        return [gain / cost for gain in gains]

    def positions(self) -> int:
        """Positions that everything committed takes, with the scratch of the next move; all where everything is seen at once."""
        if self.state.attention == "full":
            return self.state.limit
        return len(self.state.tokens) + self.procedure.scratch(self.state.limit - len(self.state.tokens))

    def ahead(self) -> int:
        """How many tokens behind its next move its drafter may guess, and positions that it may write."""
        return deepest(self.shape.head(self.drafting)) if self.drafter in KEEPING else 0

    def set_back(self, pool: BlockPool) -> None:
        """Give the memory back; what is committed and the canvas stay, so that the next move is the one it was."""
        assert not self.flying
        self.table.release(pool)
        self.state.cached = 0
        self.state.draft = None
        self.deferred = Deferred()

    def draws(self, rows: list[TokenRow]) -> list[Draws]:
        """How the first wanted position of these rows is drawn, and what follows each of their guesses."""
        if not rows[-1].wanted or rows[-1].scored:
            return [self.drawing.plain]
        if rows[-1].tokens == (UNKNOWN,):
            return [self.drawing.behind_unknown(self.state)]
        draws = self.drawing.behind(self.state, rows[-1].draft())
        # What masks guess behind a guess is drawn as the token behind it is.
        return draws + [draw for draw in draws for _ in range(rows[-1].masks - 1)]

    def fold(self, rows: list[TokenRow], whole: bool, read: TokenRead, now: float) -> list[FromEngine]:
        """Take in one forward. `whole` is False when the scheduler ran only a head of the first row."""
        state, rows = self.state, known(rows, self.state.tokens)
        before = len(state.tokens)
        self.forwards += 1
        if self.scoring is not None and self.owes_scores:
            return self._score(self.scoring, rows[0], read, now)
        draft = rows[-1].draft()
        path = accepted(draft, [reading.token for reading in read.readings]) if draft.tokens and whole else ()
        if whole:
            self.carried = read.carried
            self.procedure.fold(state, read.readings)
            self._account(draft, path)
        if read.draft is not None:
            state.draft = read.draft
        for row in rows:
            if row.keep:
                assert state.keeps(row), "what is kept must depend on the tokens before it, or of its block, alone"
                # Of a tree the last committed token and the right guesses lie at their positions.
                computed = (row.tokens[0], *(draft.tokens[i] for i in path)) if row.mode == "tree" else row.tokens
                state.cached = row.start + _agreeing(computed, state.tokens[row.start : row.start + len(computed)])
        self.prefilled += self._reach()
        fresh = state.tokens[before:]
        if not self.entered and (fresh or state.canvas or self.reached >= state.prompt_length):
            self.enters("decode", now)
        if not fresh:
            return self._revision(now)
        readings = [read.readings[1 + i] for i in (-1, *path)] if draft.tokens else read.readings
        ended: list[FromEngine] = []
        for offset, token in enumerate(fresh):
            if token in state.stops and before + offset >= state.floor:
                del state.tokens[before + offset :]
                fresh = fresh[:offset]
                self.finished = "stop"
                told = logprobs(readings[offset : offset + 1])
                ended = [Scores(self.id, [token], told, ends=True)] if told else []
                break
        if self.grammar is not None:
            try:
                self.grammar.take(fresh)
            except GrammarError as error:
                self.finished = "cancelled"
                return [grammar_failure(self.id, error)]
            if self.finished is None and self.grammar.complete:
                self.finished = "stop"
        if self.finished is None and len(state.tokens) >= state.limit:
            self.finished = "length"
        events: list[FromEngine] = []
        if fresh:
            self.first_output = self.first_output or now
            drafted = len(draft.tokens) if self.drafter else None
            events.append(Tokens(self.id, fresh, logprobs(readings[: len(fresh)]), drafted, min(len(fresh), len(path))))
        events += ended
        if self.finished is not None:
            events.append(self.end(self.finished, now))
        return events

    def _score(self, scoring: Scoring, row: TokenRow, read: TokenRead, now: float) -> list[FromEngine]:
        """Take in a forward of the prompt alone."""
        told = scoring.fold(self.state, row, read.readings)
        self.prefilled += self._reach()
        events: list[FromEngine] = [Scores(self.id, list(row.scored), told)] if told else []
        if self.idle:
            self.finished = "length"
            events.append(self.end("length", now))
        return events

    def _revision(self, now: float) -> list[FromEngine]:
        """The canvas, for a client that wants to see it, unless it saw one a moment ago."""
        state = self.state
        recent = self.revised is not None and now - self.revised < REVISION_SECONDS
        if not self.work.revisions or not state.canvas or recent:
            return []
        self.revised = now
        return [Revision(self.id, len(state.tokens), state.canvas[: state.limit - len(state.tokens)])]

    def _account(self, draft: Draft, path: Sequence[int]) -> None:
        """A forward verified these guesses; the tokens of `path` came with the model's own."""
        self.drafted += len(draft.tokens)
        self.accepted += len(path)
        self.acceptance.observe(draft, path)

    def end(self, reason: FinishReason, now: float) -> Done:
        generated = self.state.generated
        per_forward = generated / self.forwards if self.forwards else None
        return self.done(
            reason, now, prompt_tokens=self.state.prompt_length, cached_tokens=self.cached_tokens,
            generated_tokens=generated, forwards=self.forwards, tokens_per_forward=per_forward,
            drafted_tokens=self.drafted if self.drafter else None, accepted_tokens=self.accepted if self.drafter else None,
        )  # fmt: skip


AnyRequest = TextRequest | ImageRequest | SearchRequest


def _agreeing(computed: Sequence[int], committed: Sequence[int]) -> int:
    """How many tokens of a row are those that were committed, from its start: what was computed behind them is void."""
    pairs = zip(computed, committed, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(computed), len(committed)))
