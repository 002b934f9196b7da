"""What was measured of a model's procedures: how good their pictures are, for how many network evaluations."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable
from typing import Any

import msgspec

from service.procedures.registry import PROCEDURES


class MeasuredQuality(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One procedure with its parameters, and how good its pictures are.

    procedure: as a request gives it, {"name": "flow_map", "steps": 4, "guidance": 2.0}; what is left out has its default.
    nfe: network evaluations a picture, as `usage.nfe` counts them: a row of guidance's own counts too.
    frechet: squared Fréchet distance to real data in the features that the table names; lower is better. It falls with the
        number of samples, so only rows with the same number can be compared.
    correct: share of pictures that show what was asked, in [0, 1], where something can say so.
    samples: pictures that were measured. date: when, as 2026-11-30.
    """

    procedure: dict[str, Any]
    nfe: int
    samples: int
    date: datetime.date
    frechet: float | None = None
    correct: float | None = None

    def __post_init__(self) -> None:
        name, parameters = self.choice
        if name not in PROCEDURES:
            raise ValueError(f"procedure {name!r} is not known; known: {', '.join(PROCEDURES)}")
        msgspec.convert(parameters, PROCEDURES[name].parameters)
        for field in ("nfe", "samples"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, not {getattr(self, field)}")
        if self.frechet is None and self.correct is None:
            raise ValueError("neither frechet nor correct is given: nothing was measured")
        if self.frechet is not None and not (math.isfinite(self.frechet) and self.frechet >= 0.0):
            raise ValueError(f"frechet must not be negative, and finite, not {self.frechet}")
        if self.correct is not None and not 0.0 <= self.correct <= 1.0:
            raise ValueError(f"correct must be a share between 0 and 1, not {self.correct}")

    @property
    def choice(self) -> tuple[str, dict[str, Any]]:
        """The procedure's name, and its parameters."""
        parameters = dict(self.procedure)
        return str(parameters.pop("name", "")), parameters


class QualityTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was measured of one model. `features`: what the Fréchet distance is taken in, and to which data."""

    features: str
    rows: list[MeasuredQuality]

    def __post_init__(self) -> None:
        seen: list[dict[str, Any]] = []
        for row in self.rows:
            if row.procedure in seen:
                raise ValueError(f"{row.procedure} is there twice")
            seen.append(row.procedure)

    def runnable(self, procedures: Iterable[str]) -> list[MeasuredQuality]:
        """The rows of these procedures, cheapest first."""
        names = set(procedures)
        return sorted((row for row in self.rows if row.choice[0] in names), key=lambda row: row.nfe)
