"""The rows that a sampler has for a model: its table, with guidance in whatever way the network takes it."""

from __future__ import annotations

from typing import Any

import msgspec

from service.engine.messages import ModelCard
from service.procedures.parameters import SamplerParameters
from service.procedures.picture_rows import LatentRow
from service.procedures.registry import PROCEDURES
from service.procedures.tables import SamplerTable


def sampler_parameters(procedure: str, parameters: Any) -> SamplerParameters:
    """Raises msgspec.ValidationError for parameters that are not the procedure's."""
    typed = msgspec.convert(parameters, PROCEDURES[procedure].parameters)
    assert isinstance(typed, SamplerParameters)
    return typed


def takes_guidance(card: ModelCard, takes_target: bool) -> bool:
    """Whether the network takes the scale of guidance as an argument in rows that take a target time, or do not."""
    return card.guidance_input == "always" or (card.guidance_input == "jumps" and takes_target)


def latent_rows(table: SamplerTable, parameters: SamplerParameters, card: ModelCard) -> list[LatentRow]:
    """A sampler's rows for a model: guided within the interval, in whatever way the network can be."""
    as_input = takes_guidance(card, table.takes_target)
    low, high = parameters.guidance_interval
    rows: list[LatentRow] = []
    for i in range(len(table)):
        guidance = float(parameters.guidance) if low <= table.level[i] <= high else 1.0
        rows.append(
            LatentRow(
                i, table.t[i], table.s[i], table.coefficients(i), guidance, table.takes_target, i,
                paired=guidance != 1.0 and not as_input,
                rescale=parameters.guidance_rescale,
                level=table.level[i],
                estimate=(table.x0_x[i], table.x0_f[i]),
                after=(table.alpha[i], table.sigma[i]),
                start=table.start if i == 0 else None,
            )
        )
    return rows
