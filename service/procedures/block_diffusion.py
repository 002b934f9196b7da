"""Block diffusion: a canvas of masked tokens is refined, committed, and the next one begins.

Causal across blocks, bidirectional within (BD3-LM, arXiv 2503.09573; Fast-dLLM v2, 2509.26328; SDAR, 2510.06303). The
pass that commits a finished canvas (its keys and values, computed from the final tokens) rides in the forward that begins
the next canvas, so a block costs as many forwards as its refinement. Where text sees itself in blocks as well, blocks
begin at multiples of their length, and a prompt's last tokens are known ones of the first. Networks that say at a position
what comes next give a block's first token in the forward that commits the block before it. Which masked positions are set:

- `confidence`: the ones the network is surest of, block_length / steps of them (LLaDA, arXiv 2502.09992);
- `threshold`: the leftmost, and all others whose probability exceeds `threshold` (Fast-dLLM, arXiv 2505.22618, which
  sets the surest when none does; the leftmost follows known text, so that drawing it is next-token sampling).

Positions set together are drawn independently: an approximation, whose bound is the threshold or the step count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from service.procedures.types import Axis, Reading, TokenRow, TokenState


class BlockDiffusionParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of `block_diffusion`."""

    block_length: Annotated[int, Meta(ge=1, le=256, description="tokens in a canvas")] = 16
    rule: Annotated[Literal["threshold", "confidence"], Meta(description="which positions a forward sets")] = "threshold"
    threshold: (
        Annotated[float, Meta(ge=0.0, le=1.0, description="probability above which a token is set; 0.9 by default")] | None
    ) = None
    steps: (
        Annotated[int, Meta(ge=1, le=256, description="forwards a canvas, by the rule `confidence`; half its tokens by default")]
        | None
    ) = None
    sub_block_length: (
        Annotated[int, Meta(ge=1, le=256, description="the canvas is set in parts of so many tokens, from left to right")] | None
    ) = None

    def __post_init__(self) -> None:
        """Fills in the default of the rule's own parameter. Raises ValueError when the other's is given."""
        if self.sub_block_length is not None and self.block_length % self.sub_block_length:
            raise ValueError(f"`sub_block_length` must divide block_length, {self.block_length}")
        if self.rule == "threshold":
            if self.steps is not None:
                raise ValueError("`steps` is for the rule confidence; the rule is threshold")
            msgspec.structs.force_setattr(self, "threshold", 0.9 if self.threshold is None else self.threshold)
            return
        if self.threshold is not None:
            raise ValueError("`threshold` is for the rule threshold; the rule is confidence")
        if self.steps is not None and self.steps > self.block_length:
            raise ValueError(f"`steps` must be at most block_length, {self.block_length}")
        msgspec.structs.force_setattr(self, "steps", self.steps or max(1, self.block_length // 2))


@dataclass(frozen=True)
class BlockDiffusion:
    parameters: BlockDiffusionParameters

    def propose(self, state: TokenState) -> list[TokenRow]:
        assert state.mask_token is not None
        known = tuple(state.tokens[state.keepable :])
        if not state.canvas:
            state.canvas = [None] * (self.parameters.block_length - len(known))
            state.canvas_step = 0
        if _begins_behind(state):
            return [state.uncached_row(wanted=True)]
        rows = [] if state.cached == state.keepable else [state.uncached_row(wanted=False)]
        shown = tuple(state.mask_token if token is None else token for token in state.canvas)
        first = len(known) - (1 if state.shift else 0)
        wanted = tuple(first + offset for offset in self._candidates(state))
        rows.append(
            TokenRow(
                Axis.REFINE, known + shown, state.keepable, "block", False, wanted, state.canvas_step, shift=state.shift
            )
        )  # fmt: skip
        return rows

    def fold(self, state: TokenState, readings: list[Reading]) -> None:
        if _begins_behind(state):
            state.canvas[0] = readings[-1].token
        else:
            candidates = self._candidates(state)
            for i in self._chosen(state, readings):
                state.canvas[candidates[i]] = readings[i].token
            state.canvas_step += 1
        if all(token is not None for token in state.canvas):
            room = state.limit - len(state.tokens)
            state.tokens.extend(token for token in state.canvas[:room] if token is not None)
            state.canvas = []

    def scratch(self) -> int:
        return self.parameters.block_length

    def _candidates(self, state: TokenState) -> list[int]:
        """The masked offsets of the canvas that can be set next: all, or those of the first sub-block that has any."""
        masked = [offset for offset, token in enumerate(state.canvas) if token is None]
        length, known = self.parameters.sub_block_length, self.parameters.block_length - len(state.canvas)
        if length is None:
            return masked
        return [offset for offset in masked if (known + offset) // length == (known + masked[0]) // length]

    def _chosen(self, state: TokenState, readings: list[Reading]) -> list[int]:
        """Which of the candidates this forward sets; at least one."""
        if self.parameters.rule == "threshold":
            threshold = self.parameters.threshold
            assert threshold is not None
            return [i for i, reading in enumerate(readings) if i == 0 or reading.confidence > threshold]
        assert self.parameters.steps is not None
        remaining_steps = max(1, self.parameters.steps - state.canvas_step)
        surest = sorted(range(len(readings)), key=lambda i: -readings[i].confidence)
        return surest[: -(-state.canvas.count(None) // remaining_steps)]


def _begins_behind(state: TokenState) -> bool:
    """Whether the canvas' first token has yet to be read at the end of the block before it."""
    return state.shift and state.attention != "full" and state.canvas[0] is None and state.keepable == len(state.tokens)
