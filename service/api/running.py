"""A client's request in flight: its outputs in the engine, their events as one stream, and what happens when it leaves."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from fastapi import Request

from service.api.call import Asked, Call, Output
from service.api.errors import ApiError
from service.api.service_state import Service
from service.api.waiting import Waiting
from service.engine.client import Event
from service.engine.messages import Choice, Done, Failed, ImageWork, ModelCard, Submit, TextWork, Tokens, Usage
from service.metrics import outcome_of

T = TypeVar("T")
KEEP_ALIVE_SECONDS = 15.0


class Job:
    """The outputs of one request. Output i is `<id>/<i>` in the engine."""

    def __init__(self, service: Service, request: Request, card: ModelCard, procedure: str, parameters: dict[str, Any]) -> None:
        self._call: Call = request.state.call
        self.id = self._call.id
        self.card = card
        self.procedure = procedure
        self.parameters = parameters
        self.seeds: list[int] = []
        self.prompts: list[list[int]] = []
        self._service = service
        self._arrived = self._call.arrived
        self._open: set[str] = set()
        self._each = 1
        self._waiting = Waiting()
        self._tasks: list[asyncio.Task[None]] = []
        self._last_token: dict[int, float] = {}

    def start(
        self, works: Sequence[TextWork | ImageWork], seeds: list[int], priority: int, deadline_ms: float | None,
        choices: Sequence[Choice] = (),
    ) -> None:  # fmt: skip
        """Hand all outputs to the engine, with the `choices` that it has to meet the deadline. A work that searches has several
        outputs, and is then the only one. Raises QueueFull or EngineUnavailable, and then none is there."""
        deadline = None if deadline_ms is None else self._arrived + deadline_ms / 1000
        self._each = max(work.outputs if isinstance(work, ImageWork) else 1 for work in works)
        self.seeds = seeds * self._each
        self.prompts = [work.prompt for work in works if isinstance(work, TextWork)]
        submits = [
            Submit(
                f"{self.id}/{i}", self.card.name, self.procedure, self.parameters, self.seeds[i], work, self._arrived, priority,
                deadline, list(choices) if deadline is not None else [],
            )
            for i, work in enumerate(works)
        ]
        streams = self._service.client.submit(submits)
        if deadline is not None:
            self._service.metrics.hurried(self.card.name, len(submits))
        self._call.submitted(Asked.of(self.card.name, self.procedure, works, self.seeds), len(streams))
        self._open = {stream.id for stream in streams}
        self._service.running[self.id] = [stream.id for stream in streams]
        self._tasks = [asyncio.create_task(self._pump(i, stream)) for i, stream in enumerate(streams)]

    async def _pump(self, index: int, stream: Any) -> None:
        async for event in stream:
            self._count(index, event)
            if isinstance(event, Done | Failed):
                self._call.ended(Output.of(index, event))
                self._open.discard(stream.id)
                if not self._open:
                    self._service.running.pop(self.id, None)
            for place, each in enumerate(event.each(self._each) if isinstance(event, Done) else [event], index):
                if isinstance(each, Done) and each.seed is not None:
                    self.seeds[place] = each.seed
                self._waiting.put(place, each)

    def _count(self, index: int, event: Event) -> None:
        metrics, model = self._service.metrics, self.card.name
        if isinstance(event, Tokens):
            now = time.monotonic()
            before = self._last_token.get(index)
            self._last_token[index] = now
            metrics.committed(model, len(event.token_ids), None if before is None else now - before)
        elif isinstance(event, Done):
            metrics.ended(model, self.procedure, event.finish_reason, event.usage, len(event.found) or bool(event.rgb), event.ran)
        elif isinstance(event, Failed):
            metrics.ended(model, self.procedure, outcome_of(event.status), None)

    async def events(self) -> AsyncIterator[tuple[int, Event] | None]:
        """Events of all outputs until each has had its Done; None when nothing came for 15 s.

        Raises ApiError when an output failed, and ends the others.
        """
        ended = 0
        while ended < len(self.seeds):
            try:
                index, event = await asyncio.wait_for(self._waiting.take(), KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield None
                continue
            if isinstance(event, Failed):
                self.cancel()
                raise ApiError.from_failure(event)
            ended += isinstance(event, Done)
            yield index, event

    def stop(self, index: int) -> None:
        """A stop string was seen in this output."""
        self._service.client.finish(f"{self.id}/{index}", "stop")

    def cancel(self) -> None:
        """End whatever of this is still in the engine."""
        for name in self._open:
            self._service.client.finish(name)


async def unless_gone(request: Request, job: Job | None, answer: Awaitable[T]) -> T:
    """The answer, raced against the client's disconnect, which cancels it and the job. Raises ApiError 499 then."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ApiError(499, "the client went away", None, "client_closed_request")
    finally:
        leaving.cancel()
        if not work.done():
            work.cancel()
        if job is not None:
            job.cancel()


def output_seeds(given: int | None, prompts: int, n: int) -> list[int]:
    """Of n outputs for each prompt: counted from the given seed for every prompt alike, or from a random one throughout."""
    if given is None:
        first = secrets.randbits(63)
        return [(first + i) % 2**63 for i in range(prompts * n)]
    return [(given + i) % 2**63 for _ in range(prompts) for i in range(n)]


def total(usages: list[Usage], each: int = 0, generated: int | None = None) -> dict[str, Any]:
    """Usage of a request with several outputs: counts are added, seconds are the longest; what does not apply is left out.

    `each` outputs share a prompt, whose tokens count once (0: all do); `generated` are the tokens that the client got, of
    which an engine may have made a few more.
    """
    out: dict[str, Any] = {}
    for name in Usage.__struct_fields__:
        values = [value for usage in usages if (value := getattr(usage, name)) is not None]
        if values:
            out[name] = max(values) if name.endswith("_seconds") else sum(values)
    for name in ("prompt_tokens", "cached_tokens"):
        if name in out:
            out[name] = sum(getattr(usage, name) or 0 for usage in usages[:: each or len(usages)])
    if generated is not None and "generated_tokens" in out:
        out["generated_tokens"] = generated
    if out.get("forwards") and "generated_tokens" in out:
        out["tokens_per_forward"] = out["generated_tokens"] / out["forwards"]
    return out
