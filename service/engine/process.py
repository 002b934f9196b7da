"""The engine's own process: two ZeroMQ sockets of a private directory, and the loop between them.

Run as `python -m service.engine.process DIRECTORY SETTINGS_JSON PARENT`, the id of the process that it is not to outlive.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path

import msgspec
import zmq

from service.engine.assembly import ModelError, build_engine
from service.engine.loop import Engine
from service.engine.messages import FromEngine, Ready, Shutdown, ToEngine
from service.logs import configure_logging
from service.settings import Settings

GAUGE_SECONDS = 0.25
IDLE_POLL_MILLISECONDS = 200

log = logging.getLogger("stride.engine")


class EngineProcess:
    """Moves messages between the sockets and the engine until told to stop, or until its parent is gone."""

    def __init__(self, directory: Path, engine: Engine, parent: int) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._inbox = context.socket(zmq.PULL)
        self._inbox.setsockopt(zmq.RCVHWM, 0)
        self._inbox.connect(f"ipc://{directory}/in")
        self._outbox = context.socket(zmq.PUSH)
        self._outbox.setsockopt(zmq.SNDHWM, 0)
        self._outbox.setsockopt(zmq.LINGER, 1000)
        self._outbox.connect(f"ipc://{directory}/out")
        self._engine = engine
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._parent = parent
        self._running = True

    def run(self) -> None:
        self._send([Ready([served.card for served in self._engine.models.values()])])
        gauged, idle = 0.0, False
        while self._running and os.getppid() == self._parent:
            events = self._receive(wait=not self._engine.has_work)
            events += self._engine.tick()
            now = time.monotonic()
            fell_idle = not self._engine.has_work and not idle
            if fell_idle or now - gauged > GAUGE_SECONDS:
                events.append(self._engine.gauges())
                gauged = now
            idle = not self._engine.has_work
            self._send(events)
        self._send(self._engine.abort_all())

    def _receive(self, wait: bool) -> list[FromEngine]:
        events: list[FromEngine] = []
        timeout = IDLE_POLL_MILLISECONDS if wait else 0
        while self._inbox.poll(timeout):
            timeout = 0
            raw = self._inbox.recv()
            try:
                message = self._decoder.decode(raw)
            except msgspec.DecodeError as error:
                self._engine.dropped_messages += 1
                log.warning("dropped a message that does not parse: %s", error)
                continue
            if isinstance(message, Shutdown):
                self._running = False
                break
            events += self._engine.take(message)
        return events

    def _send(self, events: list[FromEngine]) -> None:
        if events:
            self._outbox.send(self._encoder.encode(events))


def main() -> int:
    directory, settings_json, parent = sys.argv[1:]
    # A terminal and a service manager send these to every process of a group: only the front end knows what is to be finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings = Settings.model_validate_json(settings_json)
    configure_logging(settings.log_level, settings.log_format, "engine")
    try:
        engine = build_engine(settings)
    except ModelError as error:
        log.error("%s", error)
        return 3
    EngineProcess(Path(directory), engine, int(parent)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
