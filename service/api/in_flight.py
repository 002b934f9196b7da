"""The requests that are being answered."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from service.api.call import Call

GIVEN = re.compile(rb"[A-Za-z0-9._:+=-]{1,128}")
"""Ids that clients may give: a slash would make one look like an output's."""


class InFlight:
    """Ids of all requests until they are over, and those that may give the engine work, from their head to the last byte of the
    answer."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._calls: set[Call] = set()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._calls)

    def name(self, given: bytes | None) -> str:
        """An id that no other request has now: the given one where it may be one, with something behind it where it is taken, as
        by a gateway that tries again; else a new one. `forget` it when the request is over."""
        if given is None or not GIVEN.fullmatch(given):
            name = f"req-{secrets.token_hex(12)}"
        else:
            name = given.decode()
            while name in self._ids:
                name = f"{given.decode()}-{secrets.token_hex(4)}"
        self._ids.add(name)
        return name

    def forget(self, name: str) -> None:
        self._ids.discard(name)

    @contextmanager
    def held(self, call: Call) -> Iterator[None]:
        """The call counts as long as this lasts."""
        self._calls.add(call)
        try:
            yield
        finally:
            self._calls.discard(call)
            self._changed.set()

    async def idle(self, seconds: float) -> bool:
        """Waits until nothing is left, at most so long; whether that is so."""
        try:
            async with asyncio.timeout(seconds):
                while self._calls:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        return not self._calls

    def cut(self) -> None:
        """End what waits for something else than the engine, such as the rest of a body, and was not answered yet."""
        for call in self._calls:
            if call.status is None:
                call.cut = True
                call.task.cancel()
