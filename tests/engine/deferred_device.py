"""A device that works later than it is told to: what a launch reads too late, or what is taken from it too early, shows."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from service.engine.loop import Engine
from service.procedures.types import UNKNOWN
from service.workers.pending import Pending
from service.workers.types import DecodeMove, EncodeMove, RowError

Line = deque["DeferredPending"]


class DeferredPending:
    """Runs when its device gets to it; what it gives is read by the device too, behind what was launched meanwhile."""

    def __init__(self, device: DeferredDevice, line: Line, work: Callable[[], Pending[Any] | list[Any]], aside: bool) -> None:
        self.aside = aside
        self.failed = False
        self.error: Exception | None = None
        self.result: Pending[Any] | list[Any] = []
        self._device, self._line, self._work = device, line, work
        self._before = list(device.open[aside])

    def run(self) -> None:
        if any(before.failed for before in self._before):
            self.error = RuntimeError("what was launched before failed")
            return
        try:
            self.result = self._work()
        except Exception as error:
            self.failed, self.error = True, error
            self._device.broken += [error] if isinstance(error, AssertionError) else []

    def wait(self, seconds: float) -> bool:
        return self._device.reach(self, self._line, patience=seconds)

    def outcomes(self) -> list[Any]:
        self._device.reach(self, self._line, patience=None)
        self._device.open[self.aside].remove(self)
        if self.error is not None:
            raise self.error
        return self.result if isinstance(self.result, list) else self._device.now(self._line, self.result.outcomes)

    def seconds(self) -> float | None:
        return None


class DeferredDevice:
    """In the thread that waits for it, as late as can be and then, as `rng` has it, with some or all of what was launched later;
    or, `threaded`, in a thread a line of its own with random delays. What a worker finds `broken` would go unseen otherwise: the
    engine runs again what has failed."""

    def __init__(self, seed: int = 0, threaded: bool = False) -> None:
        self._rng = random.Random(seed)
        self._lines: dict[bool, Line] = {False: deque(), True: deque()}
        self._threads = {aside: ThreadPoolExecutor(1) for aside in (False, True)} if threaded else {}
        self._futures: dict[DeferredPending, Future[None]] = {}
        self.open: dict[bool, list[DeferredPending]] = {False: [], True: []}
        self.overlapped = 0
        self.broken: list[AssertionError] = []

    def launch(self, work: Callable[[], Pending[Any] | list[Any]], aside: bool) -> DeferredPending:
        line = self._lines[aside]
        pending = DeferredPending(self, line, work, aside)
        self.overlapped += bool(self.open[aside])
        self.open[aside].append(pending)
        line.append(pending)
        if self._threads:
            delay = self._rng.uniform(0.0, 0.002)
            self._futures[pending] = self._threads[aside].submit(lambda: (time.sleep(delay), pending.run())[1])
        return pending

    def reach(self, pending: DeferredPending, line: Line, patience: float | None) -> bool:
        if self._threads:
            future = self._futures[pending]
            if patience is not None and not future.done():
                time.sleep(patience)
            if patience is None or future.done():
                future.result()
                return True
            return False
        if patience is not None and self._rng.random() < 0.5:
            return False
        while pending in line:
            line.popleft().run()
        for _ in range(self._rng.randrange(len(line) + 1)):
            line.popleft().run()
        return True

    def now(self, line: Line, work: Callable[[], list[Any]]) -> list[Any]:
        """Behind all that has been launched."""
        if self._threads:
            return self._threads[line is self._lines[True]].submit(work).result()
        return work()


class DeferredWorker:
    """A worker on such a device. One that cannot launch runs its moves when their time comes, and is told then which tokens were
    drawn by the launch before. Latents are encoded and decoded on a line of their own. `fails` makes a launch fail on it."""

    def __init__(self, worker: Any, device: DeferredDevice, fails: Callable[[Sequence[Any]], bool] = lambda moves: False) -> None:
        self.worker = worker
        self.device = device
        self.fails = fails
        self._drawn: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.worker, name)

    def run(self, moves: Sequence[Any]) -> list[Any]:
        return self.launch(moves).outcomes()

    def launch(self, moves: Sequence[Any]) -> DeferredPending:
        aside = isinstance(moves[0], EncodeMove | DecodeMove)
        return self.device.launch(lambda: self._work(moves), aside)

    def _work(self, moves: Sequence[Any]) -> Pending[Any] | list[Any]:
        if self.fails(moves):
            raise RuntimeError("illegal memory access")
        if hasattr(self.worker, "launch"):
            return self.worker.launch(moves)
        self._drawn = self.worker.run([self._told(move) for move in moves])
        return self._drawn

    def _told(self, move: Any) -> Any:
        if move.follows is None:
            return move
        (row,) = move.rows
        assert row.tokens == (UNKNOWN,)
        read = self._drawn[move.follows]
        token = 1 if isinstance(read, RowError) else read.readings[-1].token
        return replace(move, rows=(replace(row, tokens=(token,)),), follows=None)


def deferred(engine: Engine, seed: int = 0, threaded: bool = False) -> tuple[Engine, DeferredDevice]:
    """The same models on a deferred device, with overlapped forwards."""
    device = DeferredDevice(seed, threaded)
    models = [replace(served, worker=DeferredWorker(served.worker, device)) for served in engine.models.values()]
    return Engine(models, engine._clock, overlap=True), device
