"""Pictures with a deadline: what each runs is chosen when it is admitted, and shortened when its time runs out on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.engine.base_request import TEXTS, Bucket
from service.engine.cost import ForwardCost
from service.engine.image_request import ImageRequest
from service.engine.moves import size_of
from service.engine.planning import (
    Crowd,
    Way,
    first_in_time,
    forward_seconds,
    predicted,
    rows_in_time,
    seconds_left,
)
from service.engine.request import AnyRequest

Costs = Mapping[Bucket, ForwardCost]


def crowd_of(running: Sequence[AnyRequest], room: int, seconds: float, models: int) -> Crowd:
    """What everybody's next move is, in forwards of so many moves and seconds at most."""
    crowd = Crowd(room, models, seconds)
    for request in running:
        join(crowd, request)
    return crowd


def join(crowd: Crowd, request: AnyRequest) -> None:
    """One more; texts are of other models than pictures, and do not count."""
    bucket = request.bucket
    if bucket != TEXTS:
        rows = request.propose()
        crowd.add(bucket, size_of(rows), len(rows))


def choose(request: AnyRequest, crowd: Crowd, costs: Costs, now: float) -> None:
    """Before the first row: the best of the request's choices that is expected in time beside this crowd, of which it is no
    part, else the cheapest. Nothing for requests that have no choice."""
    left = _left(request, now)
    if left is None or not isinstance(request, ImageRequest):
        return
    bucket, once = _refine(request), _once(request, costs)
    choices = request.submit.choices
    ways = [Way(choice.rows, choice.nfe) for choice in choices]
    choice = choices[first_in_time([predicted(way, bucket, crowd, costs, once) for way in ways], left)]
    request.take(choice.procedure, choice.parameters)


def shorten(running: Sequence[AnyRequest], crowd: Crowd, costs: Costs, now: float) -> None:
    """Whoever of the crowd would be late goes on with as many rows as there is time for or, before its first row, with what it
    would choose now."""
    for request in running:
        left = _left(request, now)
        if left is None or not isinstance(request, ImageRequest) or request.at >= len(request.rows) - 1:
            continue
        rows, bucket, once = len(request.rows) - request.at, _refine(request), _once(request, costs)
        crowd.add(request.bucket, -size_of(request.propose()), -1)
        seconds = predicted(Way(rows, request.evaluations_left), bucket, crowd, costs, once)
        if seconds is not None and seconds > left:
            if request.at == 0:
                choose(request, crowd, costs, now)
            else:
                others = crowd.models * sum(forward_seconds(costs, each, 1.0) or 0.0 for each in once)
                each = crowd.round_seconds(costs, bucket, request.evaluations_a_row)
                count = rows_in_time(each, others, left, rows)
                if count * request.evaluations_a_row < request.evaluations_left:
                    request.hasten(count)
        join(crowd, request)


def _left(request: AnyRequest, now: float) -> float | None:
    """Seconds; None for a request that runs what it runs, whatever the time."""
    submit = request.submit
    return None if submit.deadline is None or not submit.choices else seconds_left(now, submit.arrived, submit.deadline)


def _refine(request: ImageRequest) -> Bucket:
    return "refine", request.work.width, request.work.height


def _once(request: ImageRequest, costs: Costs) -> list[Bucket]:
    """What a request has to run beside its rows; models that decode nothing never have."""
    decode: Bucket = ("decode", request.work.width, request.work.height)
    decodes = any(stage == "decode" for stage, _, _ in costs)
    encode: list[Bucket] = [("encode", 0, 0)] if request.encoded is None else []
    return [*encode, *([decode] if decodes else [])]
