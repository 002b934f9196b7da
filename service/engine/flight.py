"""A batch on its way through the device: what the worker is given, and what is known before it comes back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from service.engine.base_request import Flown
from service.engine.counts import Counts
from service.engine.going_ahead import known
from service.engine.messages import FromEngine
from service.engine.moves import Item
from service.engine.request import AnyRequest, TextRequest
from service.engine.scheduler import Batch
from service.procedures.types import UNKNOWN, TokenRow
from service.workers.pending import Pending
from service.workers.types import DeviceLost, LatentMove, LatentWorkerLike, RowError, TokenMove, TokenRead, TokenWorkerLike

log = logging.getLogger("stride.engine")

Move = TokenMove | LatentMove


@dataclass(slots=True)
class Flight:
    """`moves` of each item of the batch, which were launched at `launched`, after the host had taken `host` seconds to choose
    them; None as `pending` if they run when they land. `expected` seconds of the device were counted. `counts` is what was
    folded in at once."""

    batch: Batch
    moves: list[Sequence[Move]]
    flown: list[Flown]
    pending: Pending[Any] | None
    launched: float
    host: float
    expected: float = 0.0
    counts: Counts = field(default_factory=Counts)

    @property
    def places(self) -> dict[str, int]:
        """The number of each request's first move among all of them."""
        places, at = dict[str, int](), 0
        for item, each in zip(self.batch.items, self.moves, strict=True):
            places[item.request.id] = at
            at += len(each)
        return places


def moves_of(item: Item, places: Mapping[str, int]) -> Sequence[Move]:
    """What the worker gets for an item. `places`: of the moves in the launch before this one, where that is still to land."""
    request = item.request
    return [_token_move(request, item, places)] if isinstance(request, TextRequest) else request.moves(item.rows)


def flown(item: Item, moves: Sequence[Any], pending: Pending[Any] | None) -> Flown:
    """What it means for their request that these moves are on their way; what is not yet launched is not foreseen."""
    request, first = item.request, item.rows[0]
    aside = pending is not None and pending.aside
    if isinstance(request, TextRequest):
        assert isinstance(first, TokenRow)
        return Flown(first.start, pending is not None and request.foresees(item.whole), aside)
    return Flown(0, pending is not None and request.foresees(moves), aside)


def settled(item: Item, moves: Sequence[Move]) -> list[Move]:
    """The moves as they can be run again, when all that was launched before them has landed."""
    request, out = item.request, list[Move]()
    for move in moves:
        if isinstance(move, TokenMove) and move.follows is not None:
            assert isinstance(request, TextRequest)
            move = replace(move, rows=tuple(known(move.rows, request.state.tokens)), follows=None)
        out.append(move)
    return out


def outcomes_of(
    flight: Flight, worker: TokenWorkerLike | LatentWorkerLike, holds: Callable[[AnyRequest], bool]
) -> tuple[list[Any], bool]:
    """What came of every move, and whether the launch failed. Moves of a launch that did, or that never was one, run now, but
    for those of requests that are not held any more, which give None."""
    if flight.pending is not None:
        try:
            return flight.pending.outcomes(), False
        except DeviceLost:
            raise
        except Exception as error:
            log.warning("%s: a forward failed, and is run in parts: %s", flight.batch.model, error)
    every = [(item, own, holds(item.request)) for item, own in zip(flight.batch.items, flight.moves, strict=True)]
    again = [move for item, own, held in every if held for move in settled(item, own)]
    rest = iter(_run(worker, again) if again else [])
    return [next(rest) if held else None for _, own, held in every for _ in own], flight.pending is not None


def folded(item: Item, outcomes: Sequence[Any], now: float) -> list[FromEngine]:
    """The events of a request that goes on with these outcomes."""
    request = item.request
    if not isinstance(request, TextRequest):
        return request.fold_all(outcomes, now)
    assert isinstance(outcomes[0], TokenRead)
    return request.fold([row for row in item.rows if isinstance(row, TokenRow)], item.whole, outcomes[0], now)


def _run(worker: TokenWorkerLike | LatentWorkerLike, moves: list[Any]) -> list[Any]:
    """One forward; if it raises, halves of it, until the move that does it stands alone with its error. A device that
    is lost is nobody's fault, and raises DeviceLost."""
    try:
        return worker.run(moves)
    except DeviceLost:
        raise
    except Exception as error:
        if len(moves) == 1:
            return [RowError(f"the forward of this request failed: {error}")]
        middle = len(moves) // 2
        return _run(worker, moves[:middle]) + _run(worker, moves[middle:])


def _token_move(request: TextRequest, item: Item, places: Mapping[str, int]) -> TokenMove:
    rows = [row for row in item.rows if isinstance(row, TokenRow)]
    first, *later = request.draws(rows)
    drafting = request.ahead()
    behind = request.state.tokens[rows[-1].stop : rows[-1].stop + 1]
    return TokenMove(
        tuple(rows), list(request.table.blocks), first, tuple(later), drafting, request.drafter, behind[0] if behind else None,
        request.deferred, request.width, request.carried if rows[-1].draw else None,
        places[request.id] if rows[-1].tokens == (UNKNOWN,) else None,
    )  # fmt: skip
