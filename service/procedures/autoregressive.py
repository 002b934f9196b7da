"""Next-token sampling: one token a forward, the chain rule of probability and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from service.procedures.types import Reading, TokenRow, TokenState


class AutoregressiveParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing to choose: temperature, top_k and their like belong to the request."""


@dataclass(frozen=True)
class Autoregressive:
    parameters: AutoregressiveParameters

    def propose(self, state: TokenState) -> list[TokenRow]:
        return [state.uncached_row(wanted=True)]

    def fold(self, state: TokenState, readings: list[Reading]) -> None:
        state.tokens.append(readings[-1].token)

    def scratch(self, room: int) -> int:
        return 0
