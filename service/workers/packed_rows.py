"""The rows of many requests, one after another, as one forward takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.procedures.types import TokenRow
from service.workers.types import TokenMove


@dataclass(frozen=True)
class PackedRows:
    """R rows with their requests' block tables, and their N query tokens: ids, positions, the slots of the cache that
    their keys and values go to, and indices of those whose logits are wanted; and the index of every move's first token."""

    rows: list[TokenRow]
    tables: list[list[int]]
    tokens: list[int]
    positions: list[int]
    slots: list[int]
    wanted: list[int]
    firsts: list[int] = field(default_factory=list)

    def in_canvas(self) -> list[bool]:
        """Which tokens see all of their row."""
        return [row.mode == "block" for row in self.rows for _ in row.tokens]

    @classmethod
    def of(cls, moves: Sequence[TokenMove], block_size: int) -> PackedRows:
        """A move's logits are those of its last row."""
        packed = cls([], [], [], [], [], [])
        for move in moves:
            packed.firsts.append(len(packed.tokens))
            for row in move.rows:
                if row is move.rows[-1]:
                    packed.wanted.extend(len(packed.tokens) + offset for offset in row.wanted)
                places = range(row.start, row.start + len(row.tokens))
                packed.rows.append(row)
                packed.tables.append(move.blocks)
                packed.tokens.extend(row.tokens)
                packed.positions.extend(row.positions)
                packed.slots.extend(move.blocks[p // block_size] * block_size + p % block_size for p in places)
        return packed
