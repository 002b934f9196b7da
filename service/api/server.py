"""The HTTP server, and what it makes of signals."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn

log = logging.getLogger("stride.drain")


class DrainingServer(uvicorn.Server):
    """On the first SIGTERM or SIGINT it goes on listening while `drain` lasts, so that health checks and new requests get an
    answer, and stops then; `drain` is given `unsent`. A second signal ends it at once. `signal` is the one that did, else
    None."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[Callable[[], bool]], Awaitable[None]]) -> None:
        super().__init__(config)
        self.signal: int | None = None
        self._drain = drain
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._told = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's own handler stops listening at once, and raises the signal again when it has ended."""
        if self._told:
            self.signal = sig
            # It would show the tracebacks of all that is ended with it.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            self.should_exit = self.force_exit = True
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
        self._draining = asyncio.create_task(self._drained())

    async def _drained(self) -> None:
        try:
            await self._drain(self.unsent)
        except Exception:
            log.exception("a defect: the requests in flight could not be waited for")
        finally:
            self.should_exit = True
