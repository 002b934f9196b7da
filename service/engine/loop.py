"""The engine: takes in messages, chooses a batch, runs it, folds the outputs back, gives out events. One call, one tick."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from service.engine.base_request import Flown, deadline_failure
from service.engine.beginning import begin
from service.engine.counts import Counts, texts, tick_of
from service.engine.flight import Flight, Move, flown, folded, moves_of, outcomes_of
from service.engine.grammar import Compiling, Following, GrammarError, grammar_failure
from service.engine.lane import Lane
from service.engine.messages import (
    Failed,
    Finish,
    FinishReason,
    FromEngine,
    ModelCard,
    Submit,
    TextWork,
)
from service.engine.moves import Item
from service.engine.reports import Gauges
from service.engine.request import AnyRequest, TextRequest
from service.engine.scheduler import Batch, Scheduler
from service.engine.search_request import SearchRequest
from service.workers.pending import Pending
from service.workers.types import DeviceLost, LatentWorkerLike, Launching, RowError, TokenRead, TokenWorkerLike

COMPILE_WAIT_SECONDS = 0.005
ASIDE_WAIT_SECONDS = 0.002

log = logging.getLogger("stride.engine")


@dataclass(frozen=True)
class Served:
    """A model in the engine: what it says of itself, its memory and queue, and the worker that runs it."""

    card: ModelCard
    lane: Lane
    worker: TokenWorkerLike | LatentWorkerLike


class Engine:
    """All models of one device under one scheduler. `clock` gives monotonic seconds.

    With `overlap` there is at most one forward under way while the next one is chosen and launched behind it, so that the device
    always has something to do. Going on before its outcome has come can
    - a picture's row that shows nothing: the next row is known, and its latent stays on the device;
    - a chunk of a prefill: the next chunk is known;
    - plain next-token sampling: the row behind a token that is being drawn takes it where it lies, on the device;
    - and whoever has no part in what is under way.
    Everybody else waits: canvases, guesses, grammars, penalties, searches, what is shown. A row that went ahead of a request
    which turns out to have ended, or to have failed, is thrown away, and its memory is given to nobody before it is over. What is
    not sound is not shared, and events are told, in the order in which forwards land. What runs beside the forwards, as texts
    and pictures on their way through networks of their own do on a GPU, lands whenever it is over.
    """

    def __init__(
        self, models: Sequence[Served], clock: Callable[[], float] = time.monotonic, overlap: bool = False
    ) -> None:
        self.models = {served.card.name: served for served in models}
        self.scheduler = Scheduler({served.card.name: served.lane for served in models})
        self.dropped_messages = 0
        self._compiling = Compiling()
        self._checked = False
        self._clock = clock
        self._missed: Counter[str] = Counter()
        self._busy_seconds = 0.0
        self._gauged_at = clock()
        self._overlap = overlap
        self._flying: Flight | None = None
        self._aside: list[Flight] = []
        self._landed = self._gauged_at

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.requests or self._compiling or self._flying or self._aside)

    def take(self, message: Submit | Finish) -> list[FromEngine]:
        """Queue a request or end one."""
        self._checked = False
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
            request = begin(message, served.card, served.lane.pool.block_size, grammar)
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
        """Run one forward, if there is work. Where forwards overlap: launch one, and fold in the one before it, which ran while
        this one was prepared."""
        began = self._clock()
        events = [*self._arrive(began), *self._land_aside(0.0)]
        batch = self.scheduler.next_batch(began)
        if batch is None:
            if self._flying is None and self._aside:
                events += self._land_aside(ASIDE_WAIT_SECONDS)
            elif self._flying is None and not self._checked:
                self.scheduler.check_books()
                self._checked = True
            return [*events, *self._land_flying()]
        self._checked = False
        moves, failures = self._moves(batch)
        if failures:
            return [*events, *failures]  # what is left is chosen anew
        flight = self._set_off(batch, moves, began)
        events += self._foresee(flight)
        if flight.pending is not None and flight.pending.aside:
            self._aside.append(flight)
            return events
        before, self._flying = self._flying, flight
        if before is not None:
            events += self._land(before)
        return [*events, *self._land_flying()] if flight.pending is None else events

    def _arrive(self, now: float) -> list[FromEngine]:
        """Those whose grammar is ready, and those who waited too long."""
        events: list[FromEngine] = []
        for message, grammar in self._compiling.ready(0.0 if self.scheduler.requests else COMPILE_WAIT_SECONDS):
            if isinstance(grammar, GrammarError):
                events.append(Failed(message.id, 400, "invalid_value", f"the grammar cannot be followed: {grammar}"))
            else:
                events += self._queue(message, self.models[message.model], grammar)
        return events + self._expire(now)

    def _set_off(self, batch: Batch, moves: list[Sequence[Move]], began: float) -> Flight:
        """Launch a batch, where forwards overlap; one that cannot be launched runs, as all do elsewhere, when it lands."""
        pending: Pending[Any] | None = None
        chosen = self._clock()
        if self._overlap:
            try:
                pending = cast(Launching, self.models[batch.model].worker).launch([move for each in moves for move in each])
            except DeviceLost:
                raise
            except Exception as error:
                log.warning("%s: a forward could not be launched, and is run in parts: %s", batch.model, error)
        each = [flown(item, own, pending) for item, own in zip(batch.items, moves, strict=True)]
        expected = self.scheduler.launched(batch, each)
        return Flight(batch, moves, each, pending, chosen, chosen - began, expected)

    def _foresee(self, flight: Flight) -> list[FromEngine]:
        """Requests whose outcome is known before it comes go on as if it had."""
        events: list[FromEngine] = []
        before = Counts.of(texts(flight.batch))
        for item, moves, each in zip(flight.batch.items, flight.moves, flight.flown, strict=True):
            if each.foreseen:
                outcomes = [TokenRead()] if isinstance(item.request, TextRequest) else [None] * len(moves)
                events += folded(item, outcomes, flight.launched)
        flight.counts = Counts.of(texts(flight.batch)).since(before)
        return events

    def _land_flying(self) -> list[FromEngine]:
        flight, self._flying = self._flying, None
        return [] if flight is None else self._land(flight)

    def _land_aside(self, seconds: float) -> list[FromEngine]:
        """What ran beside the forwards and is over, or is so within so many seconds."""
        events: list[FromEngine] = []
        for flight in list(self._aside):
            if flight.pending is not None and flight.pending.wait(seconds):
                self._aside.remove(flight)
                events += self._land(flight)
        return events

    def _land(self, flight: Flight) -> list[FromEngine]:
        """Wait for a batch, and fold in what came of it."""
        batch, pending = flight.batch, flight.pending
        outcomes, failed = outcomes_of(flight, self.models[batch.model].worker, self.scheduler.holds)
        ran = self._clock()
        seconds = pending.seconds() if pending is not None and not failed else None
        aside = pending is not None and pending.aside
        if seconds is None:
            seconds = ran - (flight.launched if aside else max(flight.launched, self._landed))
        self._landed = self._landed if aside else ran
        self._busy_seconds += seconds
        self.scheduler.ran(batch, seconds, flight.expected)
        self.scheduler.landed(batch)
        before, rest, events = Counts.of(texts(batch)), iter(outcomes), list[FromEngine]()
        for item, moves, each in zip(batch.items, flight.moves, flight.flown, strict=True):
            own = [next(rest) for _ in moves]
            if self.scheduler.holds(item.request):
                events += self._fold(item, own, each, ran)
        counts = Counts.of(texts(batch)).since(before).and_also(flight.counts)
        # What guesses cost before the forward, as under a grammar, counts too.
        self.scheduler.learn(batch, counts.generated, seconds + flight.host)
        events.append(tick_of(batch, counts, seconds, flight.host + self._clock() - ran))
        # Behind a forward that failed nothing has run: what was launched then is run again before more is.
        return [*events, *self._land_flying()] if failed else events

    def _expire(self, now: float) -> list[FromEngine]:
        """Ends what has waited beyond its deadline, for memory or for its grammar."""
        late = [*(request.submit for request in self.scheduler.expired(now)), *self._compiling.expired(now)]
        for submit in late:
            if self.scheduler.remove(submit.id) is None:
                self._compiling.pop(submit.id)
            self._missed[submit.model] += 1
        return [deadline_failure(submit, now) for submit in late]

    def _moves(self, batch: Batch) -> tuple[list[Sequence[Move]], list[FromEngine]]:
        """What the worker gets, for each item; a request that cannot say what it wants next fails, and no other."""
        moves: list[Sequence[Move]] = []
        failures: list[FromEngine] = []
        places = {} if self._flying is None else self._flying.places
        for item in batch.items:
            try:
                moves.append(moves_of(item, places))
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

    def _fold(self, item: Item, outcomes: Sequence[Any], flown: Flown, now: float) -> list[FromEngine]:
        request = item.request
        error = next((outcome for outcome in outcomes if isinstance(outcome, RowError)), None)
        if error is not None:
            self.scheduler.remove(request.id, failed=True)
            if error.param is not None:
                return [Failed(request.id, 400, "invalid_value", str(error), error.param)]
            return [Failed(request.id, 500, "forward_failed", str(error))]
        events = [] if flown.foreseen else folded(item, outcomes, now)
        if isinstance(request, TextRequest) and any(isinstance(event, Failed) for event in events):
            self._grammar_gave_out(request)
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
            served = self.models[message.model]
            request = begin(message, served.card, served.lane.pool.block_size)
        return [] if request is None else [request.end(reason, self._clock())]
