"""How likely the model finds a prompt's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.engine.messages import Logprob
from service.procedures.types import Reading, TokenRow, TokenState


@dataclass(slots=True, eq=False)
class Scoring:
    """`owed` log-probabilities, those of a prompt's tokens from the second on, of which the first `told` were given out.

    One is read where the token before it is computed, so that what other requests computed cannot stand in for it. While
    any are owed a request computes its prompt but for the last token, from which its procedure goes on.
    """

    owed: int
    told: int = 0

    @property
    def over(self) -> bool:
        return self.told == self.owed

    def propose(self, state: TokenState) -> TokenRow:
        """What the cache lacks; a request that was set back computes anew what was told, and does not tell it again."""
        row = state.uncached_row(wanted=False).head(self.owed - state.cached)
        wanted = tuple(range(self.told - state.cached, len(row.tokens)))
        return replace(row, wanted=wanted, scored=tuple(state.tokens[self.told + 1 : self.owed + 1]))

    def fold(self, state: TokenState, row: TokenRow, readings: Sequence[Reading]) -> list[Logprob]:
        """Take in a forward of the row or of a head of it; what is told now."""
        state.cached = row.start + len(row.tokens)
        self.told += len(row.scored)
        return logprobs(readings)


def logprobs(readings: Sequence[Reading]) -> list[Logprob]:
    """Those of the readings that were asked for them."""
    return [Logprob(reading.logprob, list(reading.top)) for reading in readings if reading.logprob is not None]
