"""A client's HTTP request, from its head to the end of all that came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from service.engine.messages import Done, Failed, ImageWork, Sampling, TextWork, Usage
from service.engine.reports import StageTime


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks of a model: `outputs` in all, of which `each` share a prompt, from `seed` on. Texts have `sampling` and
    `max_tokens`, pictures a `size` of width and height."""

    model: str
    procedure: str
    outputs: int
    each: int
    seed: int
    sampling: Sampling | None = None
    max_tokens: int | None = None
    size: tuple[int, int] | None = None

    @classmethod
    def of(cls, model: str, procedure: str, works: Sequence[TextWork | ImageWork], seeds: Sequence[int]) -> Asked:
        """`works` are one an output, the same one for those that share a prompt, or one for all."""
        work, prompts = works[0], len({id(work) for work in works})
        common = (model, procedure, len(seeds), len(seeds) // prompts, seeds[0])
        if isinstance(work, TextWork):
            return cls(*common, work.sampling, work.max_tokens)
        return cls(*common, size=(work.width, work.height))


@dataclass(frozen=True, slots=True)
class Output:
    """How an output of the engine ended: `outcome` is its finish reason or `error`, then with a `code` and an HTTP status."""

    index: int
    outcome: str
    usage: Usage | None = None
    stages: Sequence[StageTime] = ()
    status: int = 200
    code: str | None = None

    @classmethod
    def of(cls, index: int, event: Done | Failed) -> Output:
        if isinstance(event, Failed):
            return cls(index, "error", status=event.status, code=event.code)
        return cls(index, event.finish_reason, event.usage, event.stages)


@dataclass(eq=False, slots=True)
class Call:
    """`task` is what answers it. It is over when its answer has ended, at the monotonic second `answered`, and none of its
    outputs is `open` in the engine: then `on_over` is told, once. `status` is None until the head of the answer was sent, `code`
    that of an error that is the answer. `cut` is set when it is to be answered with an error, whatever it waits for. `trace` has
    the headers of W3C trace context that came with it, and `works` tells whether it may ask the engine for anything."""

    id: str
    method: str
    path: str
    arrived: float
    task: asyncio.Task[object]
    on_over: Callable[[Call], None]
    trace: Mapping[str, str] = field(default_factory=dict)
    works: bool = False
    route: str | None = None
    status: int | None = None
    code: str | None = None
    streamed: bool = False
    cut: bool = False
    asked: Asked | None = None
    open: int = 0
    outputs: list[Output] = field(default_factory=list)
    answered: float | None = None

    def submitted(self, asked: Asked, outputs: int) -> None:
        """So many outputs are in the engine."""
        self.asked, self.open = asked, outputs

    def ended(self, output: Output) -> None:
        self.outputs.append(output)
        self.open -= 1
        self._settle()

    def answer_ended(self) -> None:
        self.answered = time.monotonic()
        self._settle()

    @property
    def outcome(self) -> str:
        """Of the whole: `ok` where the engine was not asked, else finish reasons, each once, or `error`."""
        if self.failure is not None:
            return "error"
        return ",".join(sorted({output.outcome for output in self.outputs})) or "ok"

    @property
    def failure(self) -> tuple[int, str] | None:
        """HTTP status and code of the first error that the client was told, as its answer or in its stream."""
        if self.status is None or self.status >= 400:
            return self.status or 499, self.code or "http_error"
        return next(((output.status, output.code or "error") for output in self.outputs if output.outcome == "error"), None)

    def _settle(self) -> None:
        if self.answered is not None and not self.open:
            self.on_over(self)
