"""Moves on their way into a forward: how large they are, what part of one fits, and which has waited too long. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.engine.request import AnyRequest, TextRequest
from service.procedures.picture_rows import PictureRow
from service.procedures.types import Draft, TokenRow

Rows = list[TokenRow] | list[PictureRow]


@dataclass(frozen=True, slots=True)
class Item:
    """One request's part of a batch. `whole` is False when only a chunk of its prefill fits."""

    request: AnyRequest
    rows: Rows
    whole: bool
    size: int


Proposed = tuple[AnyRequest, Rows]


def drafts(rows: Rows) -> int:
    last = rows[-1]
    return last.drafts if isinstance(last, TokenRow) else 0


def draft(rows: Rows) -> Draft:
    last = rows[-1]
    return last.draft() if isinstance(last, TokenRow) else Draft((), ())


def guessing(rows: Rows, count: int) -> Rows:
    """A request's rows with no more than `count` guesses in the last."""
    last = rows[-1]
    if isinstance(last, TokenRow) and last.drafts > max(0, count):
        return [*(row for row in rows[:-1] if isinstance(row, TokenRow)), last.with_drafts(max(0, count))]
    return rows


def asks(rows: Rows) -> int:
    last = rows[-1]
    return last.asks if isinstance(last, TokenRow) else 0


def alone(rows: Rows) -> Rows:
    """A request's rows without the guesses and masks of its tree."""
    return [row.alone() if row.mode == "tree" else row for row in rows if isinstance(row, TokenRow)]


def needed(rows: Rows) -> int:
    """The size of a move without its guesses."""
    return size_of(rows) - drafts(rows)


def size_of(rows: Rows) -> int:
    """Query tokens, or evaluations of networks that pictures need."""
    return sum(len(row.tokens) if isinstance(row, TokenRow) else row.evaluations for row in rows)


def count(rows: Rows) -> int:
    """Moves that rows of one request are: those of a text make one."""
    return 1 if isinstance(rows[0], TokenRow) else len(rows)


def fill(items: Sequence[Item], most: int, room: int) -> float:
    """How much of a forward's room for rows or of that for their sizes these take, whichever is more, up to 1."""
    rows, size = sum(count(item.rows) for item in items), sum(item.size for item in items)
    return min(1.0, max(rows / most, size / max(1, room)))


def parted(rows: Rows, room: int, most: int) -> Rows:
    """Of several latents' rows, as many from the first on as have room, at least one and at most so many."""
    part = [row for row in rows[:most] if not isinstance(row, TokenRow)]
    while len(part) > 1 and size_of(part) > room:
        part.pop()
    return part or rows


def positions(item: Item) -> int:
    """Positions that a request's blocks must cover for a move, and for what is drafted behind it."""
    request, stop = item.request, max((row.stop for row in item.rows if isinstance(row, TokenRow)), default=0)
    if isinstance(request, TextRequest) and item.whole and request.ahead():
        return max(stop, min(stop + request.ahead(), request.state.limit))
    return stop or request.positions()


def waited_for_all(proposed: list[Proposed], chosen: set[str], room: int) -> Proposed | None:
    """The large move of a text, if one was not chosen, that waits longest, once everybody that its priority does not go before
    has run since it did: a canvas, which cannot be cut, or a prefill for which there is no row."""
    large = [
        (request, rows)
        for request, rows in proposed
        if request.id not in chosen and isinstance(request, TextRequest) and needed(rows) > max(1, room // 8)
    ]
    first = min(large, key=lambda move: move[0].last_tick, default=None)
    if first is None:
        return None
    waiting, since, priority = {r.id for r, _ in large}, first[0].last_tick, first[0].submit.priority
    before = (r for r, _ in proposed if r.id not in waiting and r.submit.priority <= priority)
    return first if all(request.last_tick > since for request in before) else None


def fit(request: AnyRequest, rows: Rows, room: int, alone: bool) -> Item | None:
    """The move as far as `room` allows: whole, with fewer guesses, or the head of its first row; a canvas is never cut."""
    rows = guessing(rows, room - needed(rows))  # a chunk that ended among guesses would not be a whole move
    size = size_of(rows)
    if size <= room:
        return Item(request, rows, True, size)
    first = rows[0]
    if isinstance(first, TokenRow):
        length = first.cut(max(room, first.span) if alone else room)
        if 0 < length < size:
            return Item(request, [first.head(length)], False, length)
    return Item(request, rows, True, size) if alone else None
