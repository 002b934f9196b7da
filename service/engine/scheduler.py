"""Who runs next. Pure: time and measured costs are passed in, and no device is touched.

Each model has a lane: a waiting line, the requests that hold memory, and the device time it has had. The lane that has
had the least runs next (stride scheduling, Waldspurger and Weihl 1995), so that a token stream and an image batch share
a device by measured seconds. Within a lane a forward is filled with moves of whoever's turn it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.engine.base_request import Bucket, Flown
from service.engine.drafting import Trial
from service.engine.lane import Lane
from service.engine.moves import Item, fill
from service.engine.request import AnyRequest


@dataclass(frozen=True, slots=True)
class Batch:
    """The moves of one forward. `cached_tokens` of prompts were found in the cache since the batch before it. `fill` is how much
    of the room for rows or of that for tokens is taken, whichever is more; `held` how many requests each model has whose moves
    are not in it. `trial` is the one of guesses that it is part of."""

    model: str
    items: list[Item]
    cached_tokens: int
    bucket: Bucket
    fill: float = 0.0
    held: dict[str, int] = field(default_factory=dict)
    trial: Trial | None = None

    @property
    def size(self) -> int:
        """Query tokens, or network evaluations of latents."""
        return sum(item.size for item in self.items)


class Scheduler:
    """The lanes of all models of one device."""

    def __init__(self, lanes: dict[str, Lane]) -> None:
        self.lanes = lanes
        self.requests: dict[str, AnyRequest] = {}
        self._tick = 0
        self._number = 0

    def add(self, request: AnyRequest) -> None:
        """Queue a request behind those of its priority that came before. Lower `priority` runs first."""
        assert request.id not in self.requests
        lane = self.lanes[request.submit.model]
        if not lane.waiting and not lane.running:
            busy = [other.device_seconds for other in self.lanes.values() if other.running or other.waiting]
            lane.device_seconds = max(lane.device_seconds, min(busy, default=lane.device_seconds))
        self._number += 1
        request.number = self._number
        lane.queue(request)
        self.requests[request.id] = request

    def remove(self, request_id: str, failed: bool = False) -> AnyRequest | None:
        """Forget a request, wherever it is, and take its memory back. None if it is not here any more."""
        request = self.requests.pop(request_id, None)
        if request is not None:
            self.lanes[request.submit.model].remove(request, failed)
        return request

    def expired(self, now: float) -> list[AnyRequest]:
        """Requests whose deadline has passed before they could start; they are still to be removed."""
        return [
            request
            for lane in self.lanes.values()
            for request in lane.waiting
            if request.started is None and request.submit.deadline is not None and request.submit.deadline <= now
        ]

    def next_batch(self, now: float) -> Batch | None:
        """The next forward, or None when there is no work, or when the model whose turn it is has none before one of its forwards
        has landed: nobody goes in between, who might be in the way for long."""
        models = sum(1 for lane in self.lanes.values() if lane.running or lane.waiting)
        for lane in self.lanes.values():
            lane.admit(now, self._tick, models)
        lanes = self.lanes.items()
        # What runs beside the forwards may take long, and holds up nobody.
        ready = [(lane.device_seconds, name) for name, lane in lanes if not all(request.aside for request in lane.running)]
        if not ready:
            return None
        name = min(ready)[1]
        lane = self.lanes[name]
        lane.hurry(now, models)
        items = lane.select()
        if not items:
            return None
        self._tick += 1
        for item in items:
            item.request.last_tick = self._tick
        standing = {each: [*other.waiting, *(r for r in other.running if not r.waits)] for each, other in self.lanes.items()}
        held = {each: len(requests) for each, requests in standing.items()}
        held[name] -= len(items)
        share = fill(items, lane.limits.rows, lane.room)
        cached, lane.cached_tokens = lane.cached_tokens, 0
        return Batch(name, items, cached, items[0].request.bucket, share, held, lane.tried)

    def launched(self, batch: Batch, flown: Sequence[Flown]) -> float:
        """A batch runs from now on, with that to be said of each of its moves. What it is expected to take of the device counts
        at once: how many seconds, to be told to `ran`."""
        for item, each in zip(batch.items, flown, strict=True):
            item.request.flying.append(each)
        lane = self.lanes[batch.model]
        expected = lane.costs[batch.bucket].seconds(batch.size) or 0.0
        lane.device_seconds += expected
        return expected

    def landed(self, batch: Batch) -> None:
        """A batch is over, the oldest of those that run on its line. Whoever ended meanwhile now gives its memory back."""
        for item in batch.items:
            self.lanes[batch.model].landed(item.request)

    def holds(self, request: AnyRequest) -> bool:
        """Whether the request has not ended."""
        return self.requests.get(request.id) is request

    def keep(self, request: AnyRequest) -> None:
        """What a request's forward computed is sound, and may be shared."""
        self.lanes[request.submit.model].keep(request)

    def ran(self, batch: Batch, seconds: float, expected: float = 0.0) -> None:
        """A batch took this much of the device; so much was expected, and has been counted."""
        lane = self.lanes[batch.model]
        lane.device_seconds += seconds - expected
        lane.costs[batch.bucket].observe(batch.size, seconds)

    def learn(self, batch: Batch, tokens: int, seconds: float) -> None:
        """A batch gave so many tokens of output."""
        self.lanes[batch.model].learn(batch.items, batch.trial, tokens, seconds)

    def check_books(self) -> None:
        """Every request is in one line of its lane, and every block in one place. Raises AssertionError."""
        listed: list[AnyRequest] = []
        for lane in self.lanes.values():
            lane.check_books()
            listed += lane.waiting + lane.running
        assert len(listed) == len(self.requests)
        assert {request.id for request in listed} == set(self.requests), "a request is lost or listed twice"
