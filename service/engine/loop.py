"""The engine: takes in messages, chooses a batch, runs it, folds the outputs back, gives out events. One call, one tick."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from service.engine.base_request import deadline_failure
from service.engine.expanding_request import ExpandingRequest
from service.engine.grammar import Compiling, Following, GrammarError, grammar_failure
from service.engine.image_request import ImageRequest
from service.engine.lane import Lane
from service.engine.messages import (
    Failed,
    Finish,
    FinishReason,
    FromEngine,
    ImageWork,
    ModelCard,
    Submit,
    TextWork,
)
from service.engine.moves import Item
from service.engine.reports import Gauges, Tick
from service.engine.request import AnyRequest, TextRequest
from service.engine.scheduler import Batch, Scheduler
from service.engine.search_request import SearchRequest
from service.procedures.registry import PROCEDURES
from service.procedures.types import Axis, TokenRow
from service.workers.types import LatentMove, LatentWorkerLike, RowError, TokenMove, TokenRead, TokenWorkerLike

COMPILE_WAIT_SECONDS = 0.005


@dataclass(frozen=True)
class Served:
    """A model in the engine: what it says of itself, its memory and queue, and the worker that runs it."""

    card: ModelCard
    lane: Lane
    worker: TokenWorkerLike | LatentWorkerLike


class Engine:
    """All models of one device under one scheduler. `clock` gives monotonic seconds."""

    def __init__(self, models: Sequence[Served], clock: Callable[[], float] = time.monotonic) -> None:
        self.models = {served.card.name: served for served in models}
        self.scheduler = Scheduler({served.card.name: served.lane for served in models})
        self.dropped_messages = 0
        self._compiling = Compiling()
        self._clock = clock
        self._missed: Counter[str] = Counter()
        self._busy_seconds = 0.0
        self._gauged_at = clock()

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.requests or self._compiling)

    def take(self, message: Submit | Finish) -> list[FromEngine]:
        """Queue a request or end one."""
        if isinstance(message, Finish):
            return self._end(message.id, message.reason)
        served = self.models.get(message.model)
        if served is None:
            return [Failed(message.id, 404, "model_not_found", f"no model is called {message.model!r}", "model")]
        if isinstance(message.work, TextWork) and message.work.grammar:
            self._compiling.add(message, message.work.grammar, served.card)
            return []
        return self._queue(message, served)

    def _queue(self, message: Submit, served: Served, grammar: Following | None = None) -> list[FromEngine]:
        try:
            request = _begin(message, served, grammar)
        except (KeyError, ValueError, AssertionError) as error:
            return [Failed(message.id, 400, "invalid_value", f"the request cannot be run: {error}", "procedure")]
        pool = served.lane.pool
        if request.need > pool.blocks:
            text = f"the request needs {request.need} blocks of memory, {message.model} has {pool.blocks}"
            return [Failed(message.id, 400, "too_large", text, "search" if isinstance(request, SearchRequest) else "max_tokens")]
        if isinstance(request, TextRequest) and request.idle:
            return [request.end("length", self._clock())]
        if request.id in self.scheduler.requests:
            return [Failed(message.id, 400, "duplicate_id", f"a request {request.id!r} is already here", "id")]
        self.scheduler.add(request)
        return []

    def tick(self) -> list[FromEngine]:
        """Run one forward, if there is work."""
        began = self._clock()
        events: list[FromEngine] = []
        for message, grammar in self._compiling.ready(0.0 if self.scheduler.requests else COMPILE_WAIT_SECONDS):
            if isinstance(grammar, GrammarError):
                events.append(Failed(message.id, 400, "invalid_value", f"the grammar cannot be followed: {grammar}"))
            else:
                events += self._queue(message, self.models[message.model], grammar)
        events += self._expire(began)
        batch = self.scheduler.next_batch(began)
        if batch is None:
            self.scheduler.check_books()
            return events
        moves, failures = self._moves(batch)
        if failures:
            return [*events, *failures]  # what is left is chosen anew
        chosen = self._clock()
        outcomes = iter(self._run(self.models[batch.model].worker, [move for each in moves for move in each]))
        ran = self._clock()
        self.scheduler.ran(batch, ran - chosen)
        self._busy_seconds += ran - chosen
        texts = [item.request for item in batch.items if isinstance(item.request, TextRequest)]
        before = _counts(texts)
        for item, each in zip(batch.items, moves, strict=True):
            events += self._fold(item, [next(outcomes) for _ in each], ran)
        counts = _Counts(*(now - then for now, then in zip(_counts(texts), before, strict=True)))
        # What guesses cost before the forward, as under a grammar, counts too.
        self.scheduler.learn(batch, counts.generated, ran - began)
        return [*events, _report(batch, counts, ran - chosen, chosen - began + self._clock() - ran)]

    def _expire(self, now: float) -> list[FromEngine]:
        """Ends what has waited beyond its deadline, for memory or for its grammar."""
        late = [*(request.submit for request in self.scheduler.expired(now)), *self._compiling.expired(now)]
        for submit in late:
            if self.scheduler.remove(submit.id) is None:
                self._compiling.pop(submit.id)
            self._missed[submit.model] += 1
        return [deadline_failure(submit, now) for submit in late]

    def _moves(self, batch: Batch) -> tuple[list[Sequence[TokenMove | LatentMove]], list[FromEngine]]:
        """What the worker gets, for each item; a request that cannot say what it wants next fails, and no other."""
        moves: list[Sequence[TokenMove | LatentMove]] = []
        failures: list[FromEngine] = []
        for item in batch.items:
            try:
                moves.append([_token_move(item)] if isinstance(item.request, TextRequest) else item.request.moves(item.rows))
            except GrammarError as error:
                self.scheduler.remove(item.request.id)
                self._grammar_gave_out(item.request)
                failures.append(grammar_failure(item.request.id, error))
            except Exception as error:
                self.scheduler.remove(item.request.id, failed=True)
                failures.append(Failed(item.request.id, 500, "move_failed", f"the request's next move failed: {error}"))
        return moves, failures

    def gauges(self) -> Gauges:
        """How things stand, with the share of time since the last call that forwards took."""
        now = self._clock()
        busy = self._busy_seconds / max(now - self._gauged_at, 1e-9)
        self._busy_seconds, self._gauged_at = 0.0, now
        lanes = self.scheduler.lanes
        return Gauges(
            waiting={name: len(lane.waiting) for name, lane in lanes.items()},
            running={name: len(lane.running) for name, lane in lanes.items()},
            kv_blocks={
                name: (lane.pool.used, lane.pool.cached, lane.pool.free)
                for name, lane in lanes.items()
                if self.models[name].card.kind == "text"
            },
            busy_ratio=min(busy, 1.0),
            deadlines_missed=dict(self._missed),
            preemptions={name: lane.preemptions for name, lane in lanes.items()},
            dropped_messages=self.dropped_messages,
        )

    def _run(self, worker: TokenWorkerLike | LatentWorkerLike, moves: list[Any]) -> list[Any]:
        """One forward; if it raises, halves of it, until the move that does it stands alone with its error."""
        try:
            return worker.run(moves)
        except Exception as error:
            if len(moves) == 1:
                return [RowError(f"the forward of this request failed: {error}")]
            middle = len(moves) // 2
            return self._run(worker, moves[:middle]) + self._run(worker, moves[middle:])

    def _fold(self, item: Item, outcomes: Sequence[Any], now: float) -> list[FromEngine]:
        request = item.request
        error = next((outcome for outcome in outcomes if isinstance(outcome, RowError)), None)
        if error is not None:
            self.scheduler.remove(request.id, failed=True)
            if error.param is not None:
                return [Failed(request.id, 400, "invalid_value", str(error), error.param)]
            return [Failed(request.id, 500, "forward_failed", str(error))]
        if isinstance(request, TextRequest):
            rows = [row for row in item.rows if isinstance(row, TokenRow)]
            read = outcomes[0]
            assert isinstance(read, TokenRead)
            events = request.fold(rows, item.whole, read, now)
            if any(isinstance(event, Failed) for event in events):
                self._grammar_gave_out(request)
        else:
            events = request.fold_all(outcomes, now)
        self.scheduler.keep(request)
        if request.finished is not None:
            self.scheduler.remove(request.id)
            self._missed[request.submit.model] += request.late(now)
        return events

    def _grammar_gave_out(self, request: AnyRequest) -> None:
        assert isinstance(request, TextRequest)
        self._compiling.gave_out(request.submit, request.work.grammar)

    def abort_all(self, reason: FinishReason = "cancelled") -> list[FromEngine]:
        """End everything, as at shutdown."""
        return [event for i in [*self.scheduler.requests, *self._compiling.ids()] for event in self._end(i, reason)]

    def _end(self, request_id: str, reason: FinishReason) -> list[FromEngine]:
        request = self.scheduler.remove(request_id)
        if request is None and (message := self._compiling.pop(request_id)) is not None:
            request = _begin(message, self.models[message.model])
        return [] if request is None else [request.end(reason, self._clock())]


def _begin(message: Submit, served: Served, grammar: Following | None = None) -> AnyRequest:
    if isinstance(message.work, TextWork):
        return TextRequest.begin(message, message.work, served.card, served.lane.pool.block_size, grammar)
    assert isinstance(message.work, ImageWork)
    if message.work.search is not None:
        return SearchRequest.begin(message, message.work, served.card)
    if Axis.EXPAND in PROCEDURES[message.procedure].axes:
        return ExpandingRequest.begin(message, message.work, served.card)
    return ImageRequest.begin(message, message.work, served.card)


def _token_move(item: Item) -> TokenMove:
    request = item.request
    assert isinstance(request, TextRequest)
    rows = [row for row in item.rows if isinstance(row, TokenRow)]
    first, *later = request.draws(rows)
    drafting = request.ahead()
    behind = request.state.tokens[rows[-1].stop : rows[-1].stop + 1]
    return TokenMove(
        tuple(rows), request.table.blocks, first, tuple(later), drafting, request.drafter, behind[0] if behind else None,
        request.deferred, request.width, request.carried if rows[-1].draw else None,
    )  # fmt: skip


class _Counts(NamedTuple):
    """Tokens of prompts computed for the first time, of guesses verified, of those that were right, and of output."""

    prompt: int
    drafted: int
    accepted: int
    generated: int


def _counts(requests: Sequence[TextRequest]) -> _Counts:
    columns = ((r.prefilled, r.drafted, r.accepted, r.state.generated) for r in requests)
    return _Counts(*map(sum, zip(*columns, strict=True))) if requests else _Counts(0, 0, 0, 0)


def _report(batch: Batch, counts: _Counts, forward_seconds: float, scheduler_seconds: float) -> Tick:
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
