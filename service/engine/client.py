"""The front end's side of the engine: starts the process, watches it, carries messages, starts it again when it dies."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from service.engine.messages import (
    Done,
    Failed,
    Finish,
    FinishReason,
    FromEngine,
    ImageWork,
    ModelCard,
    Preview,
    ProcedureCard,
    Ready,
    Revision,
    Scores,
    Shutdown,
    Submit,
    ToEngine,
    Tokens,
)
from service.engine.reports import Gauges, Tick
from service.procedures.registry import PROCEDURES
from service.settings import Settings

log = logging.getLogger("stride.client")

Event = Tokens | Scores | Revision | Preview | Done | Failed
STOP_SECONDS = 10.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 10.0
"""Before an engine that died is started again."""
SETTLED_SECONDS = 60.0
"""An engine that lived so long was not one that dies at once: the pauses begin anew."""
MODEL_ERROR_EXIT = 3
PICTURE_BYTES = 1 << 30
"""Of given pictures that are in flight: a queue that is bounded by requests alone could hold a hundred times as much."""


class EngineUnavailable(Exception):
    """The engine is starting, away or shutting down; `code` is OpenAI's."""

    def __init__(self, message: str, code: str = "engine_unavailable") -> None:
        super().__init__(message)
        self.code = code


class QueueFull(Exception):
    """As many requests are in the engine as the settings allow."""


class EngineStream:
    """Events of one submitted request: any number of Tokens, Scores, Revision and Preview, then one Done or Failed. `pictures`
    are the bytes of those that were given with it."""

    def __init__(self, request_id: str, pictures: int = 0) -> None:
        self.id = request_id
        self.pictures = pictures
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        self._queue.put_nowait(event)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event = await self._queue.get()
            yield event
            if isinstance(event, Done | Failed):
                return


class EngineClient:
    """One engine process and everything in flight in it. `observe` is called with what the metrics are made of, `give_up`
    when the models cannot be loaded and trying again would not help, `loaded` with the models of every engine that starts."""

    def __init__(
        self, settings: Settings, observe: Callable[[Tick | Gauges], None], give_up: Callable[[], None] = lambda: None,
        loaded: Callable[[list[ModelCard]], None] = lambda models: None,
    ) -> None:  # fmt: skip
        self.models: dict[str, ModelCard] = {}
        self.ready = False
        self.restarts = 0
        self.failure: str | None = None
        self._settings = settings
        self._observe = observe
        self._give_up = give_up
        self._loaded = loaded
        self._streams: dict[str, EngineStream] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[FromEngine])
        self._context = zmq.asyncio.Context()
        self._outbox: zmq.asyncio.Socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._heard = 0.0
        self._ended: EngineUnavailable | None = None

    async def start(self) -> None:
        """Start the engine process; `ready` becomes true when its models are loaded."""
        self._supervisor = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """Ask the engine to leave; after 10 s it is killed. Open streams end as cancelled or failed."""
        self._stopping.set()
        if not self.ready and self._process is not None:
            # It loads its models, and does not listen before it has them.
            with suppress(ProcessLookupError):
                self._process.kill()
        self.ready = False
        self._send(Shutdown())
        if self._supervisor is not None:
            done, _ = await asyncio.wait({self._supervisor}, timeout=STOP_SECONDS)
            if not done:
                if self._process is not None:
                    with suppress(ProcessLookupError):
                        self._process.kill()
                self._supervisor.cancel()
                with suppress(asyncio.CancelledError):
                    await self._supervisor
        self._context.destroy(linger=0)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def answers(self) -> bool:
        """Whether it is ready, and has not been silent for as long as no forward takes: it may be there and stuck."""
        return self.ready and time.monotonic() - self._heard < self._settings.engine_silence_seconds

    @property
    def room(self) -> int:
        """As many requests may be queued or running."""
        return self._settings.max_waiting + self._settings.max_running * len(self.models)

    def procedures(self) -> list[ProcedureCard]:
        """Every procedure that this version has, with the JSON Schema of its parameters."""
        return [
            ProcedureCard(p.name, p.kind, [axis.value for axis in p.axes], sorted(p.needs), p.summary, _schema(p.parameters))
            for p in PROCEDURES.values()
        ]

    def submit(self, submits: list[Submit]) -> list[EngineStream]:
        """Hand over all of these, or none. Raises EngineUnavailable or QueueFull."""
        if self._ended is not None:
            raise self._ended
        if not self.ready:
            raise EngineUnavailable("the engine is not ready")
        if len(self._streams) + len(submits) > self.room:
            raise QueueFull(f"{len(self._streams)} requests are queued or running")
        streams = [EngineStream(submit.id, _pictures(submit)) for submit in submits]
        held, more = (sum(stream.pictures for stream in some) for some in (self._streams.values(), streams))
        if held and more and held + more > PICTURE_BYTES:
            raise QueueFull(f"given pictures of {held >> 20} MiB are queued or running")
        # Encoded before anything is registered: what cannot be sent must not hold a place.
        encoded = [self._encoder.encode(submit) for submit in submits]
        self._streams |= {stream.id: stream for stream in streams}
        for message in encoded:
            self._send_bytes(message)
        return streams

    def finish(self, request_id: str, reason: FinishReason = "cancelled") -> bool:
        """End a request; its stream still gets its Done. False if it is not in flight."""
        if request_id not in self._streams:
            return False
        self._send(Finish(request_id, reason))
        return True

    def end_all(self, code: str, message: str) -> None:
        """Everything in flight fails with this, and nothing is taken any more."""
        self._ended = EngineUnavailable(message, code)
        for request_id in self._streams:
            self._send(Finish(request_id))
        self._fail_all(code, message)

    def _send(self, message: ToEngine) -> None:
        self._send_bytes(self._encoder.encode(message))

    def _send_bytes(self, message: bytes) -> None:
        if self._outbox is not None:
            # An asyncio socket returns a future; the engine's queue is unbounded, so the send itself never waits.
            self._outbox.send(message)

    async def _supervise(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            code, began = None, time.monotonic()
            try:
                code = await self._lives()
            except Exception as error:  # no room for a process or a socket, say: there may be some later
                log.exception("the engine could not be started")
                if not self.restarts:
                    self.failure = f"the engine could not be started: {error}"
            if self._stopping.is_set():
                return
            if code == MODEL_ERROR_EXIT:
                self.failure = "the engine could not load its models; its log says why"
            if self.failure is not None:
                log.error("%s", self.failure)
                self._give_up()
                return
            self.restarts += 1
            log.error("the engine ended with code %s; starting it again", code)
            pause = FIRST_PAUSE_SECONDS if time.monotonic() - began > SETTLED_SECONDS else pause
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _lives(self) -> int:
        """From start to exit, after which nothing is in flight; returns the exit code. Raises OSError."""
        directory = Path(tempfile.mkdtemp(prefix="stride-"))
        try:
            return await self._incarnation(directory)
        finally:
            self.ready = False
            self._outbox = None
            shutil.rmtree(directory, ignore_errors=True)
            self._fail_all("engine_unavailable", "the engine went away; the request can be sent again")

    async def _incarnation(self, directory: Path) -> int:
        """One life of the engine process, from start to exit; returns its exit code."""
        with self._context.socket(zmq.PULL) as inbox, self._context.socket(zmq.PUSH) as outbox:
            inbox.setsockopt(zmq.LINGER, 0)
            outbox.setsockopt(zmq.LINGER, 0)
            inbox.setsockopt(zmq.RCVHWM, 0)
            outbox.setsockopt(zmq.SNDHWM, 0)
            inbox.bind(f"ipc://{directory}/out")
            outbox.bind(f"ipc://{directory}/in")
            self._outbox = outbox
            settings = self._settings.model_copy(update={"api_key": None})
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "service.engine.process", str(directory), settings.model_dump_json(), str(os.getpid())
            )
            if self._stopping.is_set():
                process.kill()
            receiver = asyncio.create_task(self._receive(inbox, process))
            try:
                return await process.wait()
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.kill()
                # What the engine said last is still in the socket.
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(receiver), 0.2)
                receiver.cancel()

    async def _receive(self, inbox: zmq.asyncio.Socket, process: asyncio.subprocess.Process) -> None:
        try:
            while True:
                for event in self._decoder.decode(await inbox.recv()):
                    self._dispatch(event)
        except Exception:
            log.exception("a defect: what the engine said could not be taken in, and it is started again")
            with suppress(ProcessLookupError):
                process.kill()

    def _dispatch(self, event: FromEngine) -> None:
        self._heard = time.monotonic()
        match event:
            case Tick() | Gauges():
                self._observe(event)
            case Ready(models=models):
                self.models = {card.name: card for card in models}
                self.ready = not self._stopping.is_set()
                self._loaded(models)
            case Done() | Failed():
                stream = self._streams.pop(event.id, None)
                if stream is not None:
                    stream.put(event)
            case _:
                stream = self._streams.get(event.id)
                if stream is not None:
                    stream.put(event)

    def _fail_all(self, code: str, message: str) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.put(Failed(stream.id, 503, code, message))


def _pictures(submit: Submit) -> int:
    """Bytes of the picture to start from, and of its mask."""
    return len(submit.work.image) + len(submit.work.mask) if isinstance(submit.work, ImageWork) else 0


def _schema(parameters: type[msgspec.Struct]) -> dict[str, object]:
    schema = msgspec.json.schema(parameters)
    return dict(schema["$defs"][parameters.__name__]) if "$defs" in schema else schema
