"""Block tables as arrays, kept from forward to forward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Tables:
    """Turning a list of thousands of blocks into an array takes the host longer than comparing it with the list that it was
    before: a text's table grows by a block once in many forwards.

    What was not asked for in a round is forgotten at the next.
    """

    def __init__(self) -> None:
        self._before: dict[int, tuple[list[int], np.ndarray]] = {}
        self._now: dict[int, tuple[list[int], np.ndarray]] = {}

    def begin(self) -> None:
        """Of a round."""
        self._before, self._now = self._now, {}

    def array(self, table: Sequence[int], count: int) -> np.ndarray:
        """The first `count` of a table, int32, which nobody may change. Found by the last of them, which a text shares with no
        other while it is written."""
        listed = list(table[:count]) if not isinstance(table, list) else table[:count]
        kept = self._before.get(listed[-1])
        if kept is None or kept[0] != listed:
            kept = listed, np.asarray(listed, np.int32)
        self._now[listed[-1]] = kept
        return kept[1]
