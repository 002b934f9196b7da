"""What a slow client finds when it comes back."""

from __future__ import annotations

import asyncio

from service.api.waiting import Waiting
from service.engine.client import Event
from service.engine.messages import Done, Preview, Revision, Tokens, Usage


def canvas(*tokens: int | None) -> Revision:
    return Revision("r", 0, list(tokens))


def all_of(waiting: Waiting, count: int) -> list[tuple[int, Event]]:
    async def take() -> list[tuple[int, Event]]:
        return [await waiting.take() for _ in range(count)]

    return asyncio.run(take())


def test_of_the_canvases_that_a_client_has_not_taken_the_newest_is_left() -> None:
    waiting = Waiting()
    for events in ((canvas(None, 1), canvas(2, 1)), (canvas(None, None), canvas(None, 4), canvas(3, 4))):
        for event in events:
            waiting.put(0, event)
    waiting.put(1, canvas(7, None))
    assert all_of(waiting, 2) == [(0, canvas(3, 4)), (1, canvas(7, None))]
    waiting.put(0, canvas(5, 6))
    assert all_of(waiting, 1) == [(0, canvas(5, 6))]


def test_no_canvas_comes_after_the_commit_that_ended_it() -> None:
    waiting = Waiting()
    done = Done("r", "length", Usage())
    events = [canvas(None, 1), Tokens("r", [2, 1]), canvas(None, 4), canvas(3, 4), Tokens("r", [3, 4]), canvas(None), done]
    for event in events:
        waiting.put(0, event)
    waiting.put(1, canvas(9))
    assert all_of(waiting, 4) == [(0, events[1]), (0, events[4]), (0, done), (1, canvas(9))]
    assert not waiting._events and not waiting._canvases


def test_committed_tokens_come_before_the_canvas_behind_them() -> None:
    waiting = Waiting()
    for event in (Tokens("r", [1]), canvas(None), Tokens("r", [2]), canvas(3)):
        waiting.put(0, event)
    assert [type(event) for _, event in all_of(waiting, 3)] == [Tokens, Tokens, Revision]


def test_whoever_waits_gets_what_comes() -> None:
    async def race() -> tuple[int, Event]:
        waiting = Waiting()
        taking = asyncio.create_task(waiting.take())
        await asyncio.sleep(0)
        waiting.put(2, canvas(1))
        return await taking

    assert asyncio.run(race()) == (2, canvas(1))


def test_previews_that_a_client_does_not_take_do_not_pile_up() -> None:
    waiting = Waiting(previews=1000)
    shown = [Preview("r", step, 9, 1 - step / 9, 10, 10, bytes([step]) * 300) for step in range(8)]
    for preview in shown:
        waiting.put(0, preview)
    done = Done("r", "completed", Usage())
    waiting.put(0, done)
    assert all_of(waiting, 4) == [(0, shown[5]), (0, shown[6]), (0, shown[7]), (0, done)]
    huge = Preview("r", 1, 9, 0.5, 100, 100, bytes(30_000))
    waiting.put(1, huge)
    assert all_of(waiting, 1) == [(1, huge)]
