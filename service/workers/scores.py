"""Pictures on their way through a scorer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from service.models.scorers import SCORERS
from service.workers.types import Encoded, EncodeMove, RowError, Score, ScoreMove


def refused(move: EncodeMove) -> RowError | None:
    """Why the scorer that will judge the pictures of this text cannot, if so: before any of them is made."""
    try:
        if move.scorer:
            SCORERS[move.scorer].check(move.texts[0])
    except ValueError as error:
        return RowError(f"the scorer {move.scorer} cannot judge by this prompt: {error}", "prompt")
    return None


def checked(moves: Sequence[EncodeMove], outcomes: Sequence[Encoded | RowError]) -> list[Encoded | RowError]:
    """What texts became, but for those that their scorer cannot take."""
    return [refused(move) or outcome for move, outcome in zip(moves, outcomes, strict=True)]


def scored(moves: Sequence[ScoreMove]) -> list[Score | RowError]:
    """A score a picture. A scorer that fails, or gives no number, fails its own picture."""
    return [_scored(move) for move in moves]


def _scored(move: ScoreMove) -> Score | RowError:
    picture = np.frombuffer(move.picture.rgb, np.uint8).reshape(move.picture.height, move.picture.width, 3)
    try:
        value = SCORERS[move.scorer].score(move.prompt, picture)
    except Exception as error:  # whatever it is, the other pictures have no part in it
        return RowError(f"the scorer {move.scorer} failed: {error}")
    return Score(value) if math.isfinite(value) else RowError(f"the scorer {move.scorer} gave {value}, which is no score")
