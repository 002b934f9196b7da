"""Who is in a model's memory: who may come in, who grows, who gives way, and who still holds what is being written. Pure.

Memory is taken as a request grows. Where none is left, the request that came last, of the lowest priority, is set back:
it gives up its blocks, waits, and computes again what it had committed. The one that ranks first is never set back and
waits for nobody, so it ends; then another ranks first. Blocks with tokens that several requests share are computed by
the one that ranks first among them; the others wait for it and hold the same blocks.

What was launched on the device writes to the blocks of its requests until it is over. Until then nobody who has part in it is
set back, and whoever ends meanwhile is `leaving`: its blocks are given to nobody else.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from dataclasses import dataclass, field

from service.engine.moves import Item, positions
from service.engine.request import AnyRequest, TextRequest
from service.workers.block_pool import BlockPool


@dataclass(frozen=True, slots=True)
class Limits:
    """Rows and query tokens of one forward, requests that hold memory at a time, and seconds a forward should take; of pictures
    so many evaluations times `pixels`, as far as there is memory for them."""

    rows: int
    tokens: int
    running: int
    seconds: float = 0.2
    pixels: int | None = None

    def size(self, width: int, height: int) -> int:
        """Query tokens of texts (a size of 0), or evaluations of pictures of this size; one there must always be."""
        return self.tokens if self.pixels is None or not width else max(1, min(self.tokens, self.pixels // (width * height)))


@dataclass(slots=True)
class Residents:
    """One model's requests, in the order of rank, and memory; with `prefix_cache` blocks are shared."""

    pool: BlockPool
    limits: Limits
    prefix_cache: bool = True
    waiting: list[AnyRequest] = field(default_factory=list)
    running: list[AnyRequest] = field(default_factory=list)
    leaving: list[AnyRequest] = field(default_factory=list)
    preemptions: int = 0

    def queue(self, request: AnyRequest) -> None:
        """Behind all that rank before it."""
        insort(self.waiting, request, key=rank)

    def keep(self, request: AnyRequest) -> None:
        """What a request's forward computed is sound, and may be shared."""
        if self.prefix_cache and isinstance(request, TextRequest):
            request.publish(self.pool)

    def remove(self, request: AnyRequest, failed: bool) -> None:
        """Take a request's memory back, when nothing that was launched of it runs; what a failed one computed is not shared any
        more."""
        if request not in self.running:
            self.waiting.remove(request)
            return
        self.running.remove(request)
        if failed:
            self.pool.forget(request.table.blocks)
        if request.flying:
            self.leaving.append(request)
        else:
            request.table.release(self.pool)

    def landed(self, request: AnyRequest) -> None:
        """The oldest of what was launched of a request is over."""
        request.flying.pop(0)
        if not request.flying and request in self.leaving:
            self.leaving.remove(request)
            request.table.release(self.pool)

    def check_books(self) -> None:
        """Raises AssertionError when a block is lost, held twice over, or named for another content than its own."""
        assert not any(request.table.blocks for request in self.waiting), "a waiting request holds memory"
        assert all(request.flying for request in self.leaving), "an ended request holds memory"
        held = Counter(block for request in [*self.running, *self.leaving] for block in request.table.blocks)
        self.pool.check_books(held)

    def fits(self, request: AnyRequest) -> bool:
        """Whether everybody's committed tokens and a block more each have room; blocks that others hold cost nothing."""
        if not self.running and not self.leaving:
            return True
        claimed = sum(self._claim(other) for other in self.running) + self._claim(request)
        if claimed > self.pool.available and self.prefix_cache and isinstance(request, TextRequest):
            claimed -= sum(1 for block in request.matches(self.pool) if self.pool.holders(block))
        return claimed <= self.pool.available

    def _claim(self, request: AnyRequest) -> int:
        """Blocks that a request will want soon and does not hold."""
        return min(request.need, self.pool.blocks_for(request.positions()) + 1) - len(request.table.blocks)

    def with_memory(self, items: list[Item]) -> tuple[list[Item], bool]:
        """The moves whose blocks there are, or could be had from requests that rank behind; and whether one of the moves, with
        all behind it, waits for blocks that are being written."""
        items.sort(key=lambda item: item.request.rank)
        moving: list[Item] = []
        for item in items:
            if item.request in self.running:
                grown = self._grow(item)
                if grown is None:
                    return moving, True
                moving += [item] if grown else []
        return moving, False

    def _grow(self, item: Item) -> bool | None:
        """Blocks for what a move writes. Sets back whoever ranks last while there are too few; False if that is the mover, None
        if the blocks are held by what was launched, which will be over soon."""
        request = item.request
        missing = self.pool.blocks_for(positions(item)) - len(request.table.blocks)
        while missing > self.pool.available:
            last = self.running[-1]
            if self.leaving or last.flying:
                return None
            self._set_back(last)
            if last is request:
                return False
        if missing > 0:
            request.table.blocks += self.pool.allocate(missing)
        return True

    def _set_back(self, request: AnyRequest) -> None:
        assert isinstance(request, TextRequest), "a latent never grows"
        self.running.remove(request)
        request.set_back(self.pool)
        self.queue(request)
        self.preemptions += 1


def rank(request: AnyRequest) -> tuple[int, float, int]:
    return request.rank
