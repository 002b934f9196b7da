"""A request inside the engine: its state, its procedure, the memory it holds, and what it has cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from service.engine.messages import (
    Done,
    Failed,
    FinishReason,
    FromEngine,
    ImageWork,
    ModelCard,
    Preview,
    Revision,
    Submit,
    TextWork,
    Tokens,
    Usage,
)
from service.procedures.parameters import SamplerParameters
from service.procedures.registry import PROCEDURES
from service.procedures.types import Axis, LatentRow, Reading, TokenProcedure, TokenRow, TokenState
from service.workers.types import Picture


@dataclass(slots=True, eq=False)
class Request:
    """What every request has. Times are seconds of the monotonic clock, passed in."""

    submit: Submit
    need: int
    blocks: list[int] = field(default_factory=list)
    started: float | None = None
    first_output: float | None = None
    last_tick: int = -1
    forwards: int = 0
    finished: FinishReason | None = None

    @property
    def id(self) -> str:
        return self.submit.id

    def done(self, reason: FinishReason, now: float, picture: Picture | None = None, **counts: int | float | None) -> Done:
        arrived = self.submit.arrived
        usage = Usage(
            queue_seconds=(self.started or now) - arrived,
            first_output_seconds=None if self.first_output is None else self.first_output - arrived,
            total_seconds=now - arrived,
            **counts,  # type: ignore[arg-type]
        )
        if picture is None:
            return Done(self.id, reason, usage)
        return Done(self.id, reason, usage, picture.width, picture.height, picture.rgb)


@dataclass(slots=True, eq=False)
class TextRequest(Request):
    """Expands a prompt. `stops` are the token ids that end it."""

    work: TextWork = msgspec.UNSET  # type: ignore[assignment]
    procedure: TokenProcedure = msgspec.UNSET  # type: ignore[assignment]
    state: TokenState = msgspec.UNSET  # type: ignore[assignment]
    stops: frozenset[int] = frozenset()

    @classmethod
    def begin(cls, submit: Submit, work: TextWork, card: ModelCard, block_size: int) -> TextRequest:
        spec = PROCEDURES[submit.procedure]
        assert spec.begin is not None
        procedure = spec.begin(msgspec.convert(submit.parameters, spec.parameters))
        limit = len(work.prompt) + work.max_tokens
        state = TokenState(list(work.prompt), len(work.prompt), limit, card.mask_token_id)
        stops = frozenset(work.stop_token_ids) | (frozenset() if work.ignore_eos else frozenset(card.eos_token_ids))
        need = -(-(limit + procedure.scratch()) // block_size)
        return cls(submit, need, work=work, procedure=procedure, state=state, stops=stops)

    def propose(self) -> list[TokenRow]:
        return self.procedure.propose(self.state)

    def banned(self) -> tuple[int, ...]:
        return tuple(self.stops) if self.state.generated < self.work.min_tokens else ()

    def fold(self, rows: list[TokenRow], whole: bool, readings: list[Reading], now: float) -> list[FromEngine]:
        """Take in one forward. `whole` is False when the scheduler ran only a head of the first row."""
        state = self.state
        self.forwards += 1
        for row in rows:
            if row.keep:
                state.cached = row.start + len(row.tokens)
        if not whole:
            return []
        before = len(state.tokens)
        self.procedure.fold(state, readings)
        fresh = state.tokens[before:]
        if not fresh:
            if self.work.revisions and rows[-1].axis is Axis.REFINE:
                return [Revision(self.id, before, state.canvas[: state.limit - before])]
            return []
        floor = state.prompt_length + self.work.min_tokens
        for offset, token in enumerate(fresh):
            if token in self.stops and before + offset >= floor:
                del state.tokens[before + offset :]
                fresh = fresh[:offset]
                self.finished = "stop"
                break
        if self.finished is None and len(state.tokens) >= state.limit:
            self.finished = "length"
        events: list[FromEngine] = []
        if fresh:
            self.first_output = self.first_output or now
            events.append(Tokens(self.id, fresh))
        if self.finished is not None:
            events.append(self.end(self.finished, now))
        return events

    def end(self, reason: FinishReason, now: float) -> Done:
        generated = self.state.generated
        per_forward = generated / self.forwards if self.forwards else None
        return self.done(
            reason, now, prompt_tokens=self.state.prompt_length, cached_tokens=0, generated_tokens=generated,
            forwards=self.forwards, tokens_per_forward=per_forward,
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class ImageRequest(Request):
    """Refines a latent through the rows of a sampler table."""

    work: ImageWork = msgspec.UNSET  # type: ignore[assignment]
    rows: list[LatentRow] = field(default_factory=list)
    evaluations: int = 1
    at: int = 0

    @classmethod
    def begin(cls, submit: Submit, work: ImageWork, card: ModelCard) -> ImageRequest:
        parameters = msgspec.convert(submit.parameters, PROCEDURES[submit.procedure].parameters)
        assert isinstance(parameters, SamplerParameters)
        table = parameters.table()
        guidance = float(parameters.guidance)
        columns = zip(table.a, table.b, table.c1, table.c2, table.d, table.p, table.q, strict=True)
        rows = [
            LatentRow(i, t, s, coefficients, guidance, table.takes_target, i)
            for i, (t, s, coefficients) in enumerate(zip(table.t, table.s, columns, strict=True))
        ]
        paired = guidance != 1.0 and not (table.takes_target and card.guidance_input)
        return cls(submit, 1, work=work, rows=rows, evaluations=2 if paired else 1)

    def propose(self) -> list[LatentRow]:
        return [self.rows[self.at]]

    def wants_preview(self) -> bool:
        every = self.work.preview_every
        return every > 0 and (self.at + 1) % every == 0 and self.at + 1 < len(self.rows)

    def fold(self, picture: Picture | None, now: float) -> list[FromEngine]:
        """Take in one forward; `picture` is there when the row ended the request or a preview was wanted."""
        row = self.rows[self.at]
        wanted = self.wants_preview()
        self.at += 1
        self.forwards += 1
        if self.at == len(self.rows):
            assert picture is not None
            self.first_output = self.first_output or now
            self.finished = "completed"
            return [self.end("completed", now, picture)]
        if wanted and picture is not None:
            self.first_output = self.first_output or now
            return [Preview(self.id, self.at, len(self.rows), row.t, picture.width, picture.height, picture.rgb)]
        return []

    def end(self, reason: FinishReason, now: float, picture: Picture | None = None) -> Done:
        return self.done(reason, now, picture, forwards=self.forwards, nfe=self.at * self.evaluations)


AnyRequest = TextRequest | ImageRequest


def deadline_failure(request: AnyRequest, now: float) -> Failed:
    waited = now - request.submit.arrived
    return Failed(
        request.id, 504, "deadline_exceeded",
        f"the deadline passed after {waited:.3f} s in the queue, before the request could start", "deadline_ms",
    )  # fmt: skip
