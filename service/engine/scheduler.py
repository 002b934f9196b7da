"""Who runs next. Pure: time and measured costs are passed in, and no device is touched.

Each model has a lane: a waiting line, the requests that hold memory, and the device time it has had. The lane that has
had the least runs next (stride scheduling, Waldspurger and Weihl 1995), so that a token stream and an image batch share
a device by measured seconds. Within a lane a forward is filled with moves of whoever was served longest ago.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from service.engine.cost import ForwardCost
from service.engine.request import AnyRequest, TextRequest
from service.procedures.types import LatentRow, TokenRow
from service.workers.block_pool import BlockPool


@dataclass(frozen=True, slots=True)
class Limits:
    """Rows and query tokens of one forward, requests that hold memory at a time, and seconds a forward should take."""

    rows: int
    tokens: int
    running: int
    seconds: float = 0.2


@dataclass(frozen=True, slots=True)
class Item:
    """One request's part of a batch. `whole` is False when only a chunk of its prefill fits."""

    request: AnyRequest
    rows: list[TokenRow] | list[LatentRow]
    whole: bool
    size: int


@dataclass(frozen=True, slots=True)
class Batch:
    model: str
    items: list[Item]

    @property
    def size(self) -> int:
        """Query tokens, or network evaluations of latents."""
        return sum(item.size for item in self.items)


@dataclass(slots=True)
class Lane:
    """One model's requests and memory."""

    pool: BlockPool
    limits: Limits
    waiting: list[AnyRequest] = field(default_factory=list)
    running: list[AnyRequest] = field(default_factory=list)
    device_seconds: float = 0.0
    cost: ForwardCost = field(default_factory=ForwardCost)

    def admit(self, now: float) -> None:
        """Waiting requests start in order of priority and arrival while their whole need of memory is free."""
        while self.waiting and len(self.running) < self.limits.running:
            request = self.waiting[0]
            if request.need > self.pool.free:
                return
            self.waiting.pop(0)
            request.blocks = self.pool.allocate(request.need)
            request.started = now
            self.running.append(request)

    def select(self) -> list[Item]:
        """Moves for one forward: short ones first, the longest unserved first, then prefill in what room is left."""
        affordable = self.cost.affordable(self.limits.seconds)
        room = self.limits.tokens if affordable is None else min(self.limits.tokens, affordable)
        order = sorted(self.running, key=lambda r: (r.submit.priority, r.last_tick, r.submit.arrived))
        proposed = [(request, request.propose()) for request in order]
        short = [(r, rows) for r, rows in proposed if _size(r, rows) <= self.limits.tokens // 8]
        long = [(r, rows) for r, rows in proposed if _size(r, rows) > self.limits.tokens // 8]
        reserve = room // 4 if long else 0
        items: list[Item] = []
        for request, rows in short:
            size = _size(request, rows)
            if len(items) == self.limits.rows:
                break
            if size <= room - reserve or not items:
                items.append(Item(request, rows, True, size))
                room -= size
        for request, rows in long:
            if len(items) == self.limits.rows or room < 1:
                break
            item = _fit(request, rows, room, not items)
            if item is not None:
                items.append(item)
                room -= item.size
        return items


class Scheduler:
    """The lanes of all models of one device."""

    def __init__(self, lanes: dict[str, Lane]) -> None:
        self.lanes = lanes
        self.requests: dict[str, AnyRequest] = {}
        self._tick = 0

    def add(self, request: AnyRequest) -> None:
        """Queue a request behind those of its priority that came before. Lower `priority` runs first."""
        assert request.id not in self.requests
        lane = self.lanes[request.submit.model]
        if not lane.waiting and not lane.running:
            busy = [other.device_seconds for other in self.lanes.values() if other.running or other.waiting]
            lane.device_seconds = max(lane.device_seconds, min(busy, default=lane.device_seconds))
        key = (request.submit.priority, request.submit.arrived)
        place = next((i for i, r in enumerate(lane.waiting) if (r.submit.priority, r.submit.arrived) > key), len(lane.waiting))
        lane.waiting.insert(place, request)
        self.requests[request.id] = request

    def remove(self, request_id: str) -> AnyRequest | None:
        """Forget a request, wherever it is, and take its memory back. None if it is not here any more."""
        request = self.requests.pop(request_id, None)
        if request is None:
            return None
        lane = self.lanes[request.submit.model]
        if request.started is None:
            lane.waiting.remove(request)
        else:
            lane.running.remove(request)
            lane.pool.release(request.blocks)
            request.blocks = []
        return request

    def expired(self, now: float) -> list[AnyRequest]:
        """Waiting requests whose deadline has passed; they are still to be removed."""
        return [
            request
            for lane in self.lanes.values()
            for request in lane.waiting
            if request.submit.deadline is not None and request.submit.deadline <= now
        ]

    def next_batch(self, now: float) -> Batch | None:
        """The next forward, or None when there is no work."""
        for lane in self.lanes.values():
            lane.admit(now)
        ready = [(lane.device_seconds, name) for name, lane in self.lanes.items() if lane.running]
        if not ready:
            return None
        name = min(ready)[1]
        items = self.lanes[name].select()
        assert items, "running requests, but no move fits the budgets"
        self._tick += 1
        for item in items:
            item.request.last_tick = self._tick
        return Batch(name, items)

    def ran(self, batch: Batch, seconds: float) -> None:
        """A batch took this much of the device."""
        lane = self.lanes[batch.model]
        lane.device_seconds += seconds
        lane.cost.observe(batch.size, seconds)

    def check_books(self) -> None:
        """Blocks held by requests and blocks missing from the pools are the same. Raises AssertionError."""
        listed: list[AnyRequest] = []
        for name, lane in self.lanes.items():
            held = [block for request in lane.running for block in request.blocks]
            assert len(held) == len(set(held)) == lane.pool.used, f"{name}: {len(held)} held, {lane.pool.used} missing"
            listed += lane.waiting + lane.running
        assert {request.id for request in listed} == set(self.requests), "a request is lost or listed twice"


def _size(request: AnyRequest, rows: Iterable[TokenRow | LatentRow]) -> int:
    if isinstance(request, TextRequest):
        return sum(len(row.tokens) for row in rows if isinstance(row, TokenRow))
    return request.evaluations


def _fit(request: AnyRequest, rows: list[TokenRow] | list[LatentRow], room: int, alone: bool) -> Item | None:
    """The move as far as `room` allows: whole, or the head of its causal first row; a block row is never cut."""
    size = _size(request, rows)
    if size <= room:
        return Item(request, rows, True, size)
    first = rows[0]
    if isinstance(first, TokenRow) and first.mode == "causal":
        length = min(room, len(first.tokens))
        return Item(request, [first.head(length)], False, length)
    return Item(request, rows, True, size) if alone else None
