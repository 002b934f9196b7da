"""Work that a device was given, and what comes of it later."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
POLL_SECONDS = 0.0002


class Pending(Protocol[T]):
    """A forward that was launched. What a worker launches runs in the order of the launches, but for what runs `aside`, on a
    line of its own. Behind one that fails nothing runs that was launched before its failure was collected."""

    @property
    def aside(self) -> bool: ...

    def wait(self, seconds: float) -> bool:
        """Whether it is over, after waiting so long at most."""
        ...

    def outcomes(self) -> list[T]:
        """Waits until it is over; one outcome a move. To be called once. Raises whatever made the forward fail, and then no
        latent has changed, and running the same moves again gives what they would have given."""
        ...

    def seconds(self) -> float | None:
        """Of the device's time that it took, once it is over; None where the device does not tell."""
        ...


class Span:
    """A stretch of the current CUDA stream between two events; on a CPU, where a call returns when its work is done, nothing."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._begin, self._end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._begin.record()

    def close(self) -> None:
        if self._cuda:
            self._end.record()

    def over(self) -> bool:
        return not self._cuda or self._end.query()

    def wait(self) -> None:
        if self._cuda:
            self._end.synchronize()

    def seconds(self) -> float | None:
        """Waits until it is over."""
        self.wait()
        return self._begin.elapsed_time(self._end) / 1000 if self._cuda else None


class Launched(Generic[T]):
    """What a worker of this project gives: `finish` reads what was fetched, when the `span` is over; without one the work is the
    host's, and is done then. It holds all that the device still reads and writes, so that no memory of it is given to others
    meanwhile. `later` are stretches that `finish` adds, of what the device did only then, and has been waited for."""

    def __init__(
        self, span: Span | None, finish: Callable[[], list[T]], aside: bool = False, later: Sequence[Span] = ()
    ) -> None:  # fmt: skip
        self.aside = aside
        self._span = span
        self._finish = finish
        self._later = later

    def wait(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self._span is not None and not self._span.over():
            if time.monotonic() >= until:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def outcomes(self) -> list[T]:
        if self._span is not None:
            self._span.wait()
        return self._finish()

    def seconds(self) -> float | None:
        first = None if self._span is None else self._span.seconds()
        return None if first is None else first + sum(span.seconds() or 0.0 for span in self._later)


def fetched(tensor: Tensor) -> Tensor:
    """The tensor on its way to the host, into pinned memory: to be read when the span that it was launched in is over. One
    that lies there already is given back itself."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
