"""A request for a picture inside the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from service.engine.base_request import Request
from service.engine.messages import Done, FinishReason, FromEngine, ImageWork, ModelCard, Preview, Submit
from service.procedures.parameters import SamplerParameters
from service.procedures.registry import PROCEDURES
from service.procedures.types import LatentRow
from service.workers.types import Picture


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

    def positions(self) -> int:
        """One slot for the latent."""
        return 1

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
