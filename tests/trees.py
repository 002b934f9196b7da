"""Random trees of guesses, and who sees whom in a sequence that ends in one, written out."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from service.procedures.types import Draft, TokenRow


def random_draft(seed: int, count: int, vocabulary: int = 60) -> Draft:
    """Sometimes deep, sometimes wide; no two children of a guess are alike."""
    chance = random.Random(seed)
    parents = [chance.choice((i - 1, chance.randrange(-1, i))) for i in range(count)]
    tokens: list[int] = []
    for i, parent in enumerate(parents):
        taken = {tokens[j] for j in range(i) if parents[j] == parent}
        tokens.append(chance.choice([token for token in range(vocabulary) if token not in taken]))
    return Draft(tuple(tokens), tuple(parents))


def branch(row: TokenRow, offset: int) -> list[int]:
    """Offsets of the tokens that this one sees."""
    return [i for i in range(len(row.tokens)) if row.visible[offset] >> i & 1]


def dense(row: TokenRow, window: int | None) -> Tensor:
    """Who of the cached positions and the row's tokens sees whom, bool [start + row, start + row]."""
    length = row.start + len(row.tokens)
    positions = torch.tensor([*range(row.start), *row.positions])
    seen = torch.zeros(length, length, dtype=torch.bool)
    for i in range(row.start):
        seen[i, : i + 1] = True
    for offset in range(len(row.tokens)):
        seen[row.start + offset, : row.start] = True
        seen[row.start + offset, [row.start + i for i in branch(row, offset)]] = True
    return seen if not window else seen & (positions[None] > positions[:, None] - window)
