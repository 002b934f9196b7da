"""Whether a picture will be there in time, and which way to make it will be. Pure: loads and measured costs are passed in.

A prediction takes the load to stay as it is: while a request makes its next n moves, everybody who now runs in its model
makes n, in as many forwards as those need, and every other model with work takes as much of the device. Whoever leaves is
followed by another; what changes is seen at the next tick, when everything is predicted anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.engine.base_request import Bucket
from service.engine.cost import ForwardCost

RESERVE = 0.1
"""Share of the time from arrival to deadline that is left to the answer's way back and to what no cost foretells."""
HEADROOM = 1.25
"""How many times longer than predicted a plan may take when it is chosen: not every rise of the load shortens it then."""


@dataclass(frozen=True, slots=True)
class Way:
    """What is left to do for a picture: `rows` moves with `evaluations` of the network in all."""

    rows: int
    evaluations: int


@dataclass(slots=True)
class Crowd:
    """Who runs in a model, a move each: how many in every bucket, and their evaluations. `models` have work on the device, and a
    forward has room for so many moves and should take no more than `seconds`."""

    room: int
    models: int = 1
    seconds: float = math.inf
    moves: dict[Bucket, int] = field(default_factory=dict)
    evaluations: dict[Bucket, float] = field(default_factory=dict)

    def add(self, bucket: Bucket, evaluations: float, moves: int = 1) -> None:
        """One more, or with `moves` -1 and negative evaluations one fewer."""
        self.moves[bucket] = self.moves.get(bucket, 0) + moves
        self.evaluations[bucket] = self.evaluations.get(bucket, 0.0) + evaluations

    def round_seconds(self, costs: Mapping[Bucket, ForwardCost], bucket: Bucket, evaluations: float) -> float | None:
        """Seconds for a move of everybody, and one of so many evaluations in `bucket`; None while its cost is not known."""
        total = 0.0
        for each in {*self.moves, bucket}:
            own = each == bucket
            moves, size = self.moves.get(each, 0) + own, self.evaluations.get(each, 0.0) + evaluations * own
            if moves <= 0:
                continue
            most = costs[each].affordable(self.seconds) if each in costs and self.seconds < math.inf else None
            forwards = max(math.ceil(moves / self.room), math.ceil(size / most) if most else 1)
            seconds = forward_seconds(costs, each, size / forwards)
            if seconds is None and own:
                return None
            total += forwards * (seconds or 0.0)
        return total * self.models


def forward_seconds(costs: Mapping[Bucket, ForwardCost], bucket: Bucket, size: float) -> float | None:
    """What a forward of this size is expected to take: as those of its bucket that ran; before any has, as those of the same
    stage with the nearest number of pixels, in proportion to it; None where none of the stage has run."""
    known = costs.get(bucket)
    own = None if known is None else known.seconds(size)
    if own is not None:
        return own
    stage, width, height = bucket
    pixels = max(1, width * height)
    others = [(w * h, seconds) for (s, w, h), cost in costs.items() if s == stage and (seconds := cost.seconds(size)) is not None]
    if not others:
        return None
    area, seconds = min(others, key=lambda other: abs(math.log(max(1, other[0]) / pixels)))
    return seconds * pixels / max(1, area)


def seconds_left(now: float, arrived: float, deadline: float) -> float:
    """Until the picture must be finished, so that its answer is there before the deadline; below 0 when that is past."""
    return deadline - RESERVE * (deadline - arrived) - now


def predicted(
    way: Way, bucket: Bucket, crowd: Crowd, costs: Mapping[Bucket, ForwardCost], once: Sequence[Bucket] = ()
) -> float | None:
    """Seconds until a request that goes this way is finished, beside a crowd that it is not part of; None while costs are not
    known. `once` are what it has to run beside its rows, as to encode and to decode."""
    seconds = crowd.round_seconds(costs, bucket, way.evaluations / max(1, way.rows))
    if seconds is None:
        return None
    return way.rows * seconds + crowd.models * sum(forward_seconds(costs, each, 1.0) or 0.0 for each in once)


def first_in_time(predictions: Sequence[float | None], left: float) -> int:
    """The first that is finished within `left` seconds, or of which nothing is known; otherwise the last. At least one."""
    for i, seconds in enumerate(predictions):
        if seconds is None or seconds * HEADROOM <= left:
            return i
    return len(predictions) - 1


def rows_in_time(row: float | None, once: float, left: float, most: int) -> int:
    """How many rows, of so many seconds each, are finished within `left` beside what runs `once`: at least 1, at most `most`."""
    if row is None or row <= 0.0:
        return most
    return max(1, min(most, int((left - once) / row)))
