"""One model's requests and memory: who is admitted, who moves next, and who gives way. Pure, as the scheduler is.

A forward holds moves of one bucket: all that texts want, or one stage of pictures of one size. Buckets take turns, so that a
large picture, or the text of a new one, holds up the others for one forward. Texts within a forward's room are those served
longest ago; pictures those that came and would be finished first, if each were alone: to move all of them by turns would only
have all of them end late.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.engine.base_request import TEXTS, Bucket
from service.engine.cost import ForwardCost
from service.engine.drafting import Situation, Trial, allot
from service.engine.elastic import choose, crowd_of, join, shorten
from service.engine.moves import (
    Item,
    Proposed,
    alone,
    asks,
    count,
    draft,
    fit,
    guessing,
    needed,
    parted,
    size_of,
    waited_for_all,
)
from service.engine.planning import Crowd
from service.engine.request import AnyRequest, TextRequest
from service.engine.residents import Limits, Residents, rank
from service.procedures.picture_rows import STAGES
from service.procedures.types import TokenRow

__all__ = ["Lane", "Limits", "in_order"]

GOING_AHEAD = 4
"""How many times as many texts must go ahead of others as there are of those: about the time of a forward over the host's."""


@dataclass(slots=True)
class Lane(Residents):
    """`turn` says whether a large move that others had left no room for went first in the last forward; `tried` is the trial of
    guesses that the last one is part of."""

    device_seconds: float = 0.0
    costs: dict[Bucket, ForwardCost] = field(default_factory=lambda: defaultdict(ForwardCost))
    cached_tokens: int = 0
    turn: bool = False
    room: int = 0
    _turns: dict[Bucket, float] = field(default_factory=dict)
    _taken: int = 0
    _trials: dict[Situation, Trial] = field(default_factory=dict)
    tried: Trial | None = None

    @property
    def _short(self) -> int:
        """Query tokens of a move that goes before prefill."""
        return self.limits.tokens // 8

    def admit(self, now: float, tick: int, models: int = 1) -> None:
        """Waiting requests start in the order of rank, while there is memory for what they have committed and a little more.
        Those that leave it to the service what they run are told now; so many `models` have work on the device."""
        if not self.waiting:
            return
        crowd = self._crowd(models)
        while self.waiting and len(self.running) < self.limits.running and self.fits(self.waiting[0]):
            request = self.waiting.pop(0)
            if request.started is None:
                request.started, request.last_tick = now, tick
                choose(request, crowd, self.costs, now)
            insort(self.running, request, key=rank)
            join(crowd, request)

    def _crowd(self, models: int) -> Crowd:
        return crowd_of(self.running, self.limits.rows, self.limits.seconds, models)

    def hurry(self, now: float, models: int) -> None:
        """What runs and would be late does less from here on."""
        if any(request.submit.choices for request in self.running):
            settled = [request for request in self.running if not request.waits]
            shorten(settled, self._crowd(models), self.costs, now)

    def select(self) -> list[Item]:
        """Moves for one forward, with the memory that they need; there are some whenever anything runs, unless it is better to
        wait for what was launched."""
        while ready := self._ready():
            if self._better_together(ready):
                return []
            # Whoever ranks first gets memory, and whoever does not get any leaves: this comes to an end.
            items, waits = self.with_memory(self._within_budget(ready))
            if items or waits:
                return items
        return []

    def _better_together(self, ready: list[AnyRequest]) -> bool:
        """Whether those who could move now had better wait for texts whose forward is still running, since a forward without
        them costs about as much as one with them: they then move every second time. Not where they fill a forward, nor where
        they are so many that what they would lose, a little of the host's time each, is more."""
        waiting = sum(isinstance(request, TextRequest) and request.waits for request in self.running)
        return len(ready) < min(self.limits.rows, GOING_AHEAD * waiting)

    def learn(self, items: Sequence[Item], trial: Trial | None, tokens: int, seconds: float) -> None:
        """A forward of these moves gave so many tokens of output: whether guessing paid. Prefill would blur that."""
        if trial is not None and all(item.whole and needed(item.rows) <= self._short for item in items):
            trial.observe(tokens, seconds)

    def _ready(self) -> list[AnyRequest]:
        """Who can move, after sharing what there is: not those who wait for a forward that runs, nor those whose next block is
        being computed by one before them, or in a forward that runs."""
        moving = [request for request in self.running if not request.waits]
        if not self.prefix_cache:
            return moving
        ready: list[AnyRequest] = []
        size = self.pool.block_size
        computing = {key for r in self.running if isinstance(r, TextRequest) for key in r.computing(size)}
        for request in moving:
            if isinstance(request, TextRequest) and not request.unknown and request.next_key(size) is not None:
                self.cached_tokens += request.share(self.pool)
                key = request.next_key(size)
                if key in computing and request.state.cached % (size * request.table.group) == 0:
                    continue
                if key is not None:
                    computing.add(key)
            ready.append(request)
        return ready

    def _within_budget(self, ready: list[AnyRequest]) -> list[Item]:
        """Whose turn it is; but before all a large move that has waited for everybody. Between two such forwards is one as
        usual."""
        bucket, order = self._order(ready)
        affordable = self.costs[bucket].affordable(self.limits.seconds)
        most = self.limits.size(*bucket[1:])
        room = self.room = most if affordable is None else min(most, affordable)
        moves = [(request, parted(request.propose(), min(room, self._short), self.limits.rows)) for request in order]
        proposed = self._with_guesses(moves, room)
        items = self._filled(proposed, room)
        first = None if self.turn else waited_for_all(proposed, {item.request.id for item in items}, room)
        self.turn = first is not None
        if first is None:
            return items
        head = fit(*first, room // 4, alone=True)
        assert head is not None
        others = [(request, rows) for request, rows in proposed if request is not first[0]]
        return self._filled(others, room - head.size, head)

    def _order(self, ready: list[AnyRequest]) -> tuple[Bucket, list[AnyRequest]]:
        """The bucket whose turn it is, of those that the first priority waits for, and who is in it in the order of moving."""
        priority = min(request.submit.priority for request in ready)
        buckets = dict.fromkeys(request.bucket for request in ready if request.submit.priority == priority)
        present = {request.bucket for request in ready}
        self._turns = {each: turn for each, turn in self._turns.items() if each in present or each[1:] == (0, 0)}
        for each in buckets:
            # A size that comes waits for those that waited before it came: else ever new ones would go before all others.
            self._turns.setdefault(each, self._taken - 0.5 if each[0] == "refine" else -1.0)
        bucket = min(buckets, key=lambda each: (self._turns[each], _stage(each)))
        self._taken += 1
        self._turns[bucket] = self._taken
        line = self.costs[bucket].line()
        return bucket, in_order([request for request in ready if request.bucket == bucket], line[1] if line else 0.0)

    def _filled(self, proposed: list[Proposed], room: int, first: Item | None = None) -> list[Item]:
        """Behind the first, short moves in the order given, then prefill in what room is left."""
        short = [(r, rows) for r, rows in proposed if needed(rows) <= self._short]
        long = [(r, rows) for r, rows in proposed if needed(rows) > self._short]
        reserve = room // 4 if long and first is None else 0
        items = [] if first is None else [first]
        for request, rows in short:
            free = self.limits.rows - sum(count(item.rows) for item in items)
            if free < 1:
                break
            rows = parted(guessing(rows, room - reserve - needed(rows)), room - reserve, free)
            size = size_of(rows)
            if size <= room - reserve or not items:
                items.append(Item(request, rows, True, size))
                room -= size
        for request, rows in long:
            if len(items) == self.limits.rows or room < 1:
                break
            item = fit(request, rows, room, not items)
            if item is not None:
                items.append(item)
                room -= item.size
        return items

    def _with_guesses(self, proposed: list[Proposed], room: int) -> list[Proposed]:
        """The moves with as many of their guesses as pay; whoever has much to compute first verifies none."""
        short = [(r, rows) for r, rows in proposed if needed(rows) <= self._short]
        short = short[: self.limits.rows]
        drafting = [(r, rows) for r, rows in short if isinstance(r, TextRequest) and r.drafter]
        situation = _situation(len(short), [r for r, _ in drafting if r.adaptive])
        self.tried = self._trials.setdefault(situation, Trial()) if situation[1] else None
        pays = self.tried is None or self.tried.guessing
        size = sum(needed(rows) for r, rows in short)
        tokens = sum(1 for _, rows in short if isinstance(rows[-1], TokenRow) and rows[-1].wanted)
        line, left = self.costs[TEXTS].line(), max(0, room - size)
        gains = [r.gains(draft(rows), pays) for r, rows in drafting]
        counts = dict(zip((r.id for r, _ in drafting), allot(line, size, tokens, left, gains), strict=True))
        wishes = [r.wishes(pays) for r, _ in drafting]
        size -= sum(asks(rows) for _, rows in drafting)
        for (request, _), wish in zip(drafting, allot(line, size, tokens, left, wishes), strict=True):
            request.drafting = wish
        idle = {r.id for r, rows in drafting if not r.drafting and asks(rows)}
        return [(r, alone(rows) if r.id in idle else guessing(rows, counts.get(r.id, 0))) for r, rows in proposed]

def _situation(rows: int, drafting: Sequence[TextRequest]) -> Situation:
    return rows.bit_length(), tuple(sorted({request.drafter for request in drafting}))


def in_order(requests: list[AnyRequest], seconds: float) -> list[AnyRequest]:
    """Of one bucket, by priority. Texts: whoever was served longest ago first. Pictures, at so many seconds an evaluation:
    whoever came and would be finished first if it were alone, so that a long one is overtaken by what comes while it would have
    been at work, and by nothing later. Where somebody chose a time or a quality instead of steps, all move by turns, as what
    they will be finished by is predicted."""
    if requests[0].bucket == TEXTS or any(request.submit.choices for request in requests):
        return sorted(requests, key=lambda request: (request.submit.priority, request.last_tick))
    due = {request.id: request.submit.arrived + seconds * request.left for request in requests}
    return sorted(requests, key=lambda request: (request.submit.priority, due[request.id], request.number))


def _stage(bucket: Bucket) -> int:
    """Those first that others wait for."""
    return 0 if bucket[0] is None else STAGES.index(bucket[0])
