"""Events of one request between the engine and a client that may be slower."""

from __future__ import annotations

import asyncio
from collections import deque

from service.engine.client import Event
from service.engine.messages import Preview, Revision


class Waiting:
    """Events of several outputs in the order in which they came, until they are taken.

    Of each output one canvas waits at most, behind all that is committed: a newer one takes its place, and what commits or
    ends it takes it away.
    """

    def __init__(self) -> None:
        self._events: deque[tuple[int, Event]] = deque()
        self._canvases: dict[int, Revision] = {}
        self._some = asyncio.Event()

    def put(self, index: int, event: Event) -> None:
        if isinstance(event, Revision):
            self._canvases[index] = event
        else:
            if not isinstance(event, Preview):
                self._canvases.pop(index, None)
            self._events.append((index, event))
        self._some.set()

    async def take(self) -> tuple[int, Event]:
        """The next event and its output's index."""
        while not self._events and not self._canvases:
            self._some.clear()
            await self._some.wait()
        if self._events:
            return self._events.popleft()
        index = next(iter(self._canvases))
        return index, self._canvases.pop(index)
