"""The end of a server that is told to stop: what runs is finished, nothing new is taken, and nobody is left without a word."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from service.api.errors import ApiError
from service.api.in_flight import InFlight

log = logging.getLogger("stride.drain")

CODE = "draining"
LAST_WORDS_SECONDS = 5.0
"""For errors to reach their clients, and again for what had to be cut."""
LAST_MOMENT_SECONDS = 0.5
"""The same where someone is in a hurry."""
UNSENT_POLL_SECONDS = 0.05
REFUSED = "the server is shutting down and takes no new requests"
ENDED = "the server is shutting down and could not finish the request in time; it can be sent again"


def refusal() -> ApiError:
    return ApiError(503, REFUSED, None, CODE)


def ending() -> ApiError:
    return ApiError(503, ENDED, None, CODE)


class Drain:
    """`seconds` are what requests in flight, running or queued, have to finish; `end_all` then fails those in the engine. Where
    there are none, the server stays for `notice` seconds, so that those who ask for its health see that it is going."""

    def __init__(self, in_flight: InFlight, end_all: Callable[[], None], seconds: float, notice: float = 0.0) -> None:
        self.begun = False
        self._in_flight = in_flight
        self._end_all = end_all
        self._seconds = seconds
        self._notice = notice

    async def run(self, unsent: Callable[[], bool] = lambda: False) -> None:
        """Returns when every request has its answer, or was told that it gets none. `unsent` tells whether a part of an answer
        is still to be sent, for which as long is waited as for the answer."""
        self.begun = True
        began = time.monotonic()
        log.info("draining: %d requests have %g s to finish, new ones are refused", len(self._in_flight), self._seconds)
        if not await self._in_flight.idle(self._seconds):
            log.warning("%d requests did not finish within %g s and get an error", len(self._in_flight), self._seconds)
            self._end_all()
            if not await self._in_flight.idle(LAST_WORDS_SECONDS):
                self._in_flight.cut()
                await self._in_flight.idle(LAST_WORDS_SECONDS)
        while unsent() and time.monotonic() < began + self._seconds + 2 * LAST_WORDS_SECONDS:
            await asyncio.sleep(UNSENT_POLL_SECONDS)
        await asyncio.sleep(max(0.0, began + self._notice - time.monotonic()))
        self._tell(began)

    async def break_off(self, unsent: Callable[[], bool] = lambda: False) -> None:
        """Instead of `run`, or in the middle of it: whoever reads is told within a moment that there is no answer."""
        self.begun = True
        began = time.monotonic()
        log.warning("told to end at once: %d requests get an error", len(self._in_flight))
        self._end_all()
        self._in_flight.cut()
        await self._in_flight.idle(LAST_MOMENT_SECONDS)
        while unsent() and time.monotonic() < began + LAST_MOMENT_SECONDS:
            await asyncio.sleep(UNSENT_POLL_SECONDS)
        self._tell(began)

    def _tell(self, began: float) -> None:
        if self._in_flight:
            log.error("%d clients do not read their answers, which are cut", len(self._in_flight))
        else:
            log.info("drained in %.1f s", time.monotonic() - began)
