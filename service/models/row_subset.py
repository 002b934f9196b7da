"""Which rows of a call a part of a network is being run for, where it is run for some of them only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_PRESENT: ContextVar[tuple[int, ...] | None] = ContextVar("present", default=None)


@contextmanager
def only(rows: Sequence[int]) -> Iterator[None]:
    """While it lasts, what is run gets just these rows of the call, in this order: reuse between steps leaves out others."""
    token = _PRESENT.set(tuple(rows))
    try:
        yield
    finally:
        _PRESENT.reset(token)


def present() -> tuple[int, ...] | None:
    """The rows by their numbers in the call; None: all of them."""
    return _PRESENT.get()
