"""Masked diffusion over a whole sequence: prompt and max_tokens masks, set block by block from left to right.

For networks whose every token sees every other (LLaDA, arXiv 2502.09992; Dream, 2508.15487), also the masks that stand for
the text to come, so that `max_tokens` is part of what the network is asked. What a forward sets in the block is decided by
the rules of `block_diffusion`. With the cache `none` each forward computes the whole sequence: exact. The others are
Fast-dLLM's approximations (2505.22618), in which a block's first forward alone does so and leaves keys and values:

- `prefix`: later ones compute the block and what is behind it, and see the text before it as it was computed then;
- `dual`: they compute the block alone, and see what is behind it, too, as it was computed then.

Where a network says at a position what comes next, they compute the token before the block as well. What is left depends
on the whole sequence, so that no other request ever shares it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from msgspec import Meta

from service.procedures.block_diffusion import BlockDiffusion, BlockDiffusionParameters
from service.procedures.types import Axis, Reading, TokenRow, TokenState


class MaskedDiffusionParameters(BlockDiffusionParameters, frozen=True, forbid_unknown_fields=True):
    """Parameters of `masked_diffusion`: those of `block_diffusion`, and what a forward need not compute again."""

    cache: Annotated[Literal["none", "prefix", "dual"], Meta(description="none is exact, the others approximate")] = "none"


@dataclass(frozen=True)
class MaskedDiffusion:
    """`state.cached` is the block's begin while the cache holds what its first forward has computed."""

    parameters: MaskedDiffusionParameters

    def propose(self, state: TokenState) -> list[TokenRow]:
        begin = len(state.tokens)
        if not state.canvas:
            state.canvas = [None] * min(self.parameters.block_length, state.limit - begin)
            state.canvas_step = 0
        canvas = BlockDiffusion(self.parameters).propose(state)[-1]
        assert state.mask_token is not None
        behind = (state.mask_token,) * (state.limit - begin - len(state.canvas))
        cached, exact = state.cached == begin, self.parameters.cache == "none"
        if not exact and not cached and state.canvas_step > 0:
            # Set back: what the block's first forward left is computed again from what it saw.
            masks = (state.mask_token,) * (state.limit - begin)
            return [TokenRow(Axis.EXPAND, (*state.tokens, *masks), 0, "block", True, ())]
        start = 0 if exact or not cached else begin - state.shift
        dual = cached and self.parameters.cache == "dual"
        row = replace(
            canvas, tokens=(*state.tokens[start:], *canvas.tokens, *(() if dual else behind)), start=start,
            keep=not exact and not cached, wanted=tuple(begin - start + offset for offset in canvas.wanted),
            until=state.limit if dual else None,
        )  # fmt: skip
        return [row]

    def fold(self, state: TokenState, readings: list[Reading]) -> None:
        if readings:
            BlockDiffusion(self.parameters).fold(state, readings)

    def scratch(self, room: int) -> int:
        return 0
