"""Guesses from the text itself: what followed the last time that it ended as it ends now (prompt lookup decoding).

Saxena, "Prompt Lookup Decoding" (2023). Free, and right where a text repeats itself or its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence


class PromptLookup:
    """The last place of every run of `shortest` to `longest` tokens of one text, which grows: a token costs as many steps
    as there are lengths, whatever came before, and about 200 bytes for each."""

    def __init__(self, shortest: int, longest: int) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        self._behind: dict[tuple[int, ...], int] = {}
        self._taken = 0

    def guess(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """`count` tokens that could follow: those behind the last earlier occurrence of the longest run that ends the text.

        Where they reach the end of the text they go on with the guesses, so that a loop is continued. Empty without an
        occurrence. The tokens before those of the last call must be what they were.
        """
        self._take(tokens)
        for length in self._lengths:
            found = self._behind.get(tuple(tokens[-length:])) if length <= len(tokens) else None
            if found is not None:
                guesses: list[int] = []
                for place in range(found, found + count):
                    guesses.append(tokens[place] if place < len(tokens) else guesses[place - len(tokens)])
                return tuple(guesses)
        return ()

    def _take(self, tokens: Sequence[int]) -> None:
        """Notes the runs that have something behind them: all but those that end the text."""
        for stop in range(self._taken + 1, len(tokens)):
            for length in self._lengths:
                if length <= stop:
                    self._behind[tuple(tokens[stop - length : stop])] = stop
        self._taken = max(self._taken, len(tokens) - 1)
