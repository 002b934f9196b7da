"""Rows behind a token that is being drawn: of plain next-token sampling, where no decision of the host hangs on it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service.procedures.types import UNKNOWN, Axis, TokenRow, TokenState


def has_row_ahead(state: TokenState, unknown: int) -> bool:
    """Whether there is a row behind `unknown` tokens that are being drawn: not where they are the last ones. That one of them
    ends the text is not known; the row is then for nothing."""
    return state.attention == "causal" and len(state.tokens) + unknown < state.limit


def row_ahead(state: TokenState) -> TokenRow:
    """Of the token that is being drawn behind all that are committed."""
    return TokenRow(Axis.EXPAND, (UNKNOWN,), len(state.tokens), "causal", True, (0,))


def known(rows: Sequence[TokenRow], tokens: Sequence[int]) -> list[TokenRow]:
    """Rows with the tokens that were not known when they were launched, and are committed now."""
    return [replace(row, tokens=(tokens[row.start],)) if row.tokens == (UNKNOWN,) else row for row in rows]
