"""Events of one request between the engine and a client that may be slower."""

from __future__ import annotations

import asyncio
from collections import deque

from service.engine.client import Event
from service.engine.messages import Preview, Revision

PREVIEW_BYTES = 64 << 20


class Waiting:
    """Events of several outputs in the order in which they came, until they are taken.

    Of each output one canvas waits at most, behind all that is committed: a newer one takes its place, and what commits or
    ends it takes it away. Previews wait as far as they take `previews` bytes in all; newer ones take the place of the oldest.
    """

    def __init__(self, previews: int = PREVIEW_BYTES) -> None:
        self._previews = previews
        self._bytes = 0
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
        if isinstance(event, Preview):
            self._bytes += len(event.rgb)
            self._drop_previews(event)
        self._some.set()

    def _drop_previews(self, newest: Preview) -> None:
        if self._bytes <= self._previews:
            return
        for entry in list(self._events):
            event = entry[1]
            if isinstance(event, Preview) and event is not newest:
                self._events.remove(entry)
                self._bytes -= len(event.rgb)
                if self._bytes <= self._previews:
                    return

    async def take(self) -> tuple[int, Event]:
        """The next event and its output's index."""
        while not self._events and not self._canvases:
            self._some.clear()
            await self._some.wait()
        if self._events:
            index, event = self._events.popleft()
            self._bytes -= len(event.rgb) if isinstance(event, Preview) else 0
            return index, event
        index = next(iter(self._canvases))
        return index, self._canvases.pop(index)
