"""One step of canvases of tokens: what the network says at every position, which positions are set by it, and setting them.

`read` goes over the logits once and gives a drawn token and how sure the network is; `select` is a small second stage, a
program a canvas, that decides as the rules of block diffusion do and writes what is chosen into the canvases, which never
leave the device for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from kernels.canvas_step import reference
from kernels.dispatch import triton_for
from kernels.token_sampling import COLDEST, EVERY_KIND, Kinds, draw_tokens, spread

__all__ = ["LONGEST", "Readings", "Rule", "Selection", "read", "select"]

LONGEST = 1024
"""Positions of a canvas that `select` takes on a GPU: it compares each with each."""


class Rule(IntEnum):
    """Which positions a forward sets, of those that it read. Each also sets the `due` positions that its measure ranks
    highest, the leftmost of equals: confidence for the first three, margin, and the lowest entropy for the last two."""

    THRESHOLD = 0
    """All whose confidence exceeds `value` (Fast-dLLM, arXiv 2505.22618)."""
    FACTOR = 1
    """The n surest for the largest n with (n + 1)(1 - c_n) < value (the same, its factor-based decoding)."""
    CONFIDENCE = 2
    """None beyond those due (LLaDA, arXiv 2502.09992)."""
    MARGIN = 3
    """None beyond those due (Dream, arXiv 2508.15487)."""
    ENTROPY = 4
    """None beyond those due (Dream)."""
    ENTROPY_BOUND = 5
    """Those of the lowest entropies whose sum without the largest stays within `value` (arXiv 2505.24857)."""


@dataclass(frozen=True)
class Readings:
    """What was read: of all rows the token drawn, int64 [W], and its plain probability, float32; of the rows that were asked,
    [A], entropy in nats and margin, float32, and the likeliest token."""

    token: Tensor
    confidence: Tensor
    entropy: Tensor
    margin: Tensor
    likeliest: Tensor


@dataclass(frozen=True)
class Selection:
    """The rule of every canvas, on the device: rule and due int32 [C], value float64 [C], leftmost bool [C], which sets the
    first position read whatever the rule says."""

    rule: Tensor
    value: Tensor
    due: Tensor
    leftmost: Tensor


def read(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, numbers: Tensor,
    purpose: int, asked: Tensor, warmth: Tensor, threads: int = 1, kinds: Kinds = EVERY_KIND,
) -> Readings:  # fmt: skip
    """`draw_tokens` of all rows of logits float32 [W, V], and `spread` of the rows `asked` int64 [A] with their likeliest
    tokens: on a GPU in one pass. `warmth` float32 [A] is the temperature of the entropies, as in `spread`; the rest as
    in `draw_tokens`."""
    if triton_for(logits):
        from kernels.token_sampling.triton_draw import draw

        warm = torch.where(warmth < COLDEST, 1.0, warmth)
        warmths = torch.ones(len(logits), device=logits.device).index_copy(0, asked, warm)
        drawn = draw(logits, temperature, top_k, top_p, min_p, seeds, numbers, purpose, kinds, warmths)
        spreads = (column[asked] for column in (drawn.entropy, drawn.margin, drawn.likeliest))
        return Readings(drawn.token, drawn.confidence, *spreads)
    token, confidence = draw_tokens(logits, temperature, top_k, top_p, min_p, seeds, numbers, purpose, threads)
    own = logits[asked]
    return Readings(token, confidence, *spread(own, warmth, threads), own.argmax(-1))


def select(canvas: Tensor, reading: Tensor, readings: Readings, selection: Selection) -> Tensor:
    """Chooses positions and writes their tokens into `canvas` int64 [C, L]. `reading` int64 [C, L] says which row of the
    readings belongs to a position, -1 where none was read: it is not chosen. All rows were asked for their spread. Returns
    what was chosen, bool [C, L].

    Decisions are made in float64, as by `service.procedures.unmasking` from the same numbers; sums of entropies are added in
    another order, which decides otherwise only where one is within rounding, some 1e-15, of its bound. Raises ValueError
    where shapes do not fit or a canvas is longer than `LONGEST` on a GPU.
    """
    if canvas.shape != reading.shape or len(selection.rule) != len(canvas):
        raise ValueError(f"canvas {list(canvas.shape)}, reading {list(reading.shape)} and {len(selection.rule)} rules do not fit")
    if triton_for(canvas):
        from kernels.canvas_step import triton_kernel

        if canvas.shape[1] > LONGEST:
            raise ValueError(f"canvas may have {LONGEST} positions, not {canvas.shape[1]}")
        rows = readings.token, readings.confidence, readings.entropy, readings.margin
        rules = selection.rule, selection.value, selection.due, selection.leftmost
        return triton_kernel.select(canvas, reading, *rows, *rules)
    at = reading.clamp(min=0)
    confidence, entropy, margin = (x[at].double() for x in (readings.confidence, readings.entropy, readings.margin))
    chosen = reference.chosen(
        reading >= 0, confidence, entropy, margin, selection.rule, selection.value, selection.due, selection.leftmost
    )
    canvas.copy_(torch.where(chosen, readings.token[at], canvas))
    return chosen
