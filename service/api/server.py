"""The HTTP server, and what it makes of signals."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn

log = logging.getLogger("stride.drain")

Ending = Callable[[Callable[[], bool]], Awaitable[None]]


class DrainingServer(uvicorn.Server):
    """On the first SIGTERM or SIGINT it goes on listening while `drain` lasts, so that health checks and new requests get an
    answer, and stops then. A second signal ends it as soon as clients were told so, a third one at once. `drain` and `break_off`
    are given `unsent`. `signal` is the one that ended it before it had drained, else None."""

    def __init__(self, config: uvicorn.Config, drain: Ending, break_off: Ending) -> None:
        super().__init__(config)
        self.signal: int | None = None
        self._drain = drain
        self._break_off = break_off
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._told = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's own handler stops listening at once, and raises the signal again when it has ended."""
        if self._told:
            # It would show the tracebacks of all that is ended with it.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            if self.signal is None and self._draining is not None and self._loop is not None:
                self._loop.call_soon_threadsafe(self._hurry, self._draining)
            else:
                self.should_exit = self.force_exit = True
            self.signal = sig
        elif self.started and self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin)
        else:
            self.should_exit = True
        self._told = True

    def unsent(self) -> bool:
        """Whether a part of an answer is still in the memory of this process: a client or its network is slow."""
        transports = [getattr(connection, "transport", None) for connection in self.server_state.connections]
        return any(transport.get_write_buffer_size() for transport in transports if transport is not None)

    def _begin(self) -> None:
        self._draining = asyncio.create_task(self._ended_by(self._drain, "could not be waited for"))

    def _hurry(self, draining: asyncio.Task[None]) -> None:
        draining.cancel()
        self._draining = asyncio.create_task(self._ended_by(self._break_off, "could not be ended", force=True))

    async def _ended_by(self, ending: Ending, failed: str, force: bool = False) -> None:
        try:
            await ending(self.unsent)
        except Exception:
            log.exception("a defect: the requests in flight %s", failed)
        self.should_exit = True
        self.force_exit |= force
