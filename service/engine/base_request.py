"""What requests of all kinds have: the submit, the memory that they hold, and what they have cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from service.engine.block_table import BlockTable
from service.engine.messages import Done, Failed, FinishReason, Submit, Usage
from service.engine.reports import StageTime
from service.procedures.picture_rows import Stage
from service.workers.types import Picture

Bucket = tuple[Stage | None, int, int]
"""What rows must have in common to share a forward of a model: the stage, and width and height of the picture."""

TEXTS: Bucket = (None, 0, 0)


@dataclass(frozen=True, slots=True)
class Flown:
    """A request's part of a forward that was launched and has not landed. `start`: where what it writes begins, of a text.
    `foreseen`: nothing of what comes next hangs on its outcome, and the request went on as if it had come. `aside`: it runs
    beside the forwards."""

    start: int = 0
    foreseen: bool = False
    aside: bool = False


@dataclass(slots=True, eq=False)
class Request:
    """What every request has. Times are seconds of the monotonic clock, passed in.

    `need` is the most blocks that it can come to hold. `number` counts the requests of the engine. `flying` is what was
    launched of it, oldest first. `entered` are the stages that came after the `first_stage`, and when each began.
    """

    submit: Submit
    need: int
    table: BlockTable = field(default_factory=BlockTable)
    number: int = 0
    started: float | None = None
    first_output: float | None = None
    last_tick: int = -1
    forwards: int = 0
    finished: FinishReason | None = None
    flying: list[Flown] = field(default_factory=list)
    entered: list[tuple[str, float]] = field(default_factory=list)

    first_stage: ClassVar[str] = "prefill"

    @property
    def unknown(self) -> int:
        """Launched forwards whose outcomes the request goes on from."""
        return sum(not flown.foreseen for flown in self.flying)

    @property
    def waits(self) -> bool:
        """Whether there is no next move before a launched forward has landed."""
        return self.unknown > 0

    @property
    def aside(self) -> bool:
        """Whether it waits for something that runs beside the forwards."""
        return any(flown.aside for flown in self.flying)

    @property
    def id(self) -> str:
        return self.submit.id

    @property
    def rank(self) -> tuple[int, float, int]:
        """Whose memory is safer: priority, then age. The first of all is never set back."""
        return self.submit.priority, self.submit.arrived, self.number

    @property
    def bucket(self) -> Bucket:
        """Of the next move. Token rows all go together."""
        return TEXTS

    def late(self, now: float) -> bool:
        """Whether it ends after the deadline that it was to be finished by; of others a deadline only limits the wait."""
        return bool(self.submit.choices) and self.submit.deadline is not None and now > self.submit.deadline

    @property
    def left(self) -> int:
        """Network evaluations until a picture is finished; not known of texts."""
        return 0

    def enters(self, stage: str, now: float) -> None:
        """It is in this stage from now on."""
        self.entered.append((stage, now))

    def stages(self, now: float) -> list[StageTime]:
        """Where its time went, until now; stages that took none are left out."""
        begun = [("queue", self.submit.arrived)]
        if self.started is not None:
            begun += [(self.first_stage, self.started), *self.entered]
        ends = [*(began for _, began in begun[1:]), now]
        return [StageTime(name, began, ended) for (name, began), ended in zip(begun, ends, strict=True) if began < ended]

    def done(self, reason: FinishReason, now: float, picture: Picture | None = None, **counts: int | float | None) -> Done:
        arrived = self.submit.arrived
        usage = Usage(
            queue_seconds=(self.started or now) - arrived,
            first_output_seconds=None if self.first_output is None else self.first_output - arrived,
            total_seconds=now - arrived,
            **counts,  # type: ignore[arg-type]
        )
        if picture is None:
            return Done(self.id, reason, usage, stages=self.stages(now))
        return Done(self.id, reason, usage, picture.width, picture.height, picture.rgb, stages=self.stages(now))


def deadline_failure(submit: Submit, now: float) -> Failed:
    waited = now - submit.arrived
    return Failed(
        submit.id, 504, "deadline_exceeded",
        f"the deadline passed after {waited:.3f} s in the queue, before the request could start", "deadline_ms",
    )  # fmt: skip
