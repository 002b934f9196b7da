"""Block diffusion: a canvas of noise is refined, committed, and the next one begins.

Causal across blocks, bidirectional within (BD3-LM, arXiv 2503.09573; Fast-dLLM v2, 2509.26328; SDAR, 2510.06303). The
pass that commits a finished canvas (its keys and values, computed from the final tokens) rides in the forward that begins
the next canvas, so a block costs as many forwards as its refinement. Where text sees itself in blocks as well, blocks
begin at multiples of their length, and a prompt's last tokens are known ones of the first. Networks that say at a position
what comes next give a block's first token in the forward that commits the block before it. Which positions are set:

- `threshold`: the leftmost, and all others whose probability exceeds `threshold`, or as many as `factor` allows (Fast-dLLM,
  arXiv 2505.22618, which sets the surest when none does; the leftmost follows known text, so that drawing it is next-token
  sampling). With `steps`: the surest of its share and all above the threshold, as LLaDA 2 does;
- `confidence`, `margin`, `entropy`: those with the highest probability (LLaDA, arXiv 2502.09992), the largest lead over the
  next token or the lowest entropy (Dream, 2508.15487), block_length / steps of them;
- `entropy_bound`: those with the lowest entropies, as far as the bound goes (arXiv 2505.24857);
- `remask`: by lot, and what is set may be masked again (ReMDM, arXiv 2503.00307);
- `uniform`: by the posterior of uniform corruption (D3PM, arXiv 2107.03006).

Positions set together are drawn independently: an approximation, whose bound is the rule's parameter. A network with a mask
token sees it wherever nothing is set; one without was trained with random tokens as its noise, and sees fresh ones in
every forward; there, `entropy_bound` accepts anew each time, for `steps` forwards at most. With `confidence_threshold` it is
DiffusionGemma's: the canvas ends as the likeliest tokens of its last forward, which is the first in which they are those of the
`stability_threshold` forwards before it and the mean entropy is below that threshold.

Nothing is drawn beyond the request's limit (but where text sees itself in blocks, which are filled whole as published), nor
behind a token that ends the text, which no later forward can unset.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.procedures.block_diffusion_parameters import SPREAD_RULES, BlockDiffusionParameters
from service.procedures.chance import Purpose, uniform
from service.procedures.remasking import Remasking
from service.procedures.types import Axis, Reading, TokenRow, TokenState
from service.procedures.uniform_noise import posterior_token, random_token
from service.procedures.unmasking import above, by_factor, entropy, highest, margin, owed, share, within_entropy

__all__ = ["BlockDiffusion", "BlockDiffusionParameters"]


@dataclass(frozen=True)
class BlockDiffusion:
    parameters: BlockDiffusionParameters

    def propose(self, state: TokenState) -> list[TokenRow]:
        known = tuple(state.tokens[state.keepable :])
        if not state.canvas:
            state.canvas = [None] * (self.parameters.block_length - len(known))
            state.canvas_step = 0
            state.guesses = []
        if _leads(state) and state.canvas[0] is None:
            return [state.uncached_row(wanted=True)]
        rows = [] if state.cached == state.keepable else [state.uncached_row(wanted=False)]
        first = len(known) - (1 if state.shift else 0)
        rows.append(
            TokenRow(
                Axis.REFINE, (*known, *_shown(state)), state.keepable, "block", False,
                tuple(first + offset for offset in self._wanted(state)), state.canvas_step, shift=state.shift,
                spread=self.parameters.rule in SPREAD_RULES, heat=self._heat(state),
            )
        )  # fmt: skip
        return rows

    def fold(self, state: TokenState, readings: list[Reading]) -> None:
        if _leads(state) and state.canvas[0] is None:
            state.canvas[0] = readings[-1].token
        else:
            self._refine(state, dict(zip(self._wanted(state), readings, strict=True)))
        if self._finished(state):
            state.tokens.extend(token for token in state.canvas[: min(self._end(state), _room(state))] if token is not None)
            state.canvas = []

    def scratch(self, room: int) -> int:
        return self.parameters.block_length

    def _refine(self, state: TokenState, readings: dict[int, Reading]) -> None:
        match self.parameters.rule:
            case "remask":
                self._remask(state, readings)
            case "uniform":
                self._follow_posterior(state, readings)
            case "entropy_bound" if state.mask_token is None:
                self._accept_anew(state, readings)
            case _:
                offsets = list(readings)
                for i in self._chosen(state, list(readings.values())):
                    state.canvas[offsets[i]] = readings[offsets[i]].token
                state.canvas_step += 1

    def _resamples(self, state: TokenState) -> bool:
        """Whether what is set may change again before the canvas is committed."""
        rule = self.parameters.rule
        return rule in ("remask", "uniform") or (rule == "entropy_bound" and state.mask_token is None)

    def _end(self, state: TokenState) -> int:
        """Offset behind the last position of the canvas that is drawn."""
        if state.conditioned:
            return len(state.canvas)
        end = len(state.canvas) if state.attention == "block" else min(len(state.canvas), _room(state))
        if self._resamples(state):
            return end
        start = len(state.tokens)
        ends = (i for i, token in enumerate(state.canvas[:end]) if token in state.stops and start + i >= state.floor)
        return next(ends, end - 1) + 1

    def _wanted(self, state: TokenState) -> list[int]:
        """Offsets of the canvas that are read: those that are not set, of the first sub-block that has any, or all where the
        rule looks at every position anew."""
        end = self._end(state)
        if self._resamples(state) and self.parameters.rule != "remask":
            return list(range(end))
        unset = [i for i in range(end) if state.canvas[i] is None]
        length, known = self.parameters.sub_block_length, len(state.tokens) - state.keepable
        return unset if length is None else [i for i in unset if (known + i) // length == (known + unset[0]) // length]

    def _finished(self, state: TokenState) -> bool:
        if self._resamples(state):
            return state.canvas_step >= self._steps(state)
        return all(token is not None for token in state.canvas[: self._end(state)])

    def _steps(self, state: TokenState) -> int:
        return self.parameters.steps or len(state.canvas)

    def _heat(self, state: TokenState) -> float:
        """Evenly from `t_max` in the first forward towards `t_min`."""
        high, low = self.parameters.t_max, self.parameters.t_min
        if high is None or low is None:
            return 1.0
        steps = self._steps(state)
        return low + (high - low) * max(1, steps - state.canvas_step) / steps

    def _chosen(self, state: TokenState, readings: list[Reading]) -> set[int]:
        """Which of the positions that are not set this forward sets; at least one."""
        p = self.parameters
        confidence = [reading.confidence for reading in readings]
        due = self._due(state)
        match p.rule:
            case "threshold":
                sure = by_factor(readings, p.factor) if p.factor is not None else above(readings, p.threshold or 0.0)
                return sure | ({0} if p.steps is None else highest(confidence, due))
            case "margin":
                return highest([margin(reading) for reading in readings], due)
            case "entropy":
                return highest([-entropy(reading) for reading in readings], due)
            case "entropy_bound":
                assert p.entropy_bound is not None
                least = highest([-entropy(reading) for reading in readings], due) if p.steps is not None else set()
                return within_entropy(readings, p.entropy_bound) | least
            case _:
                return highest(confidence, due)

    def _due(self, state: TokenState) -> int:
        """How many the schedule of `steps` sets at least; never fewer than one, so that every forward gets somewhere."""
        length, steps, step = len(state.canvas), self._steps(state), state.canvas_step
        if state.mask_token is None:
            return max(1, owed(length, steps, step, length - state.canvas.count(None)))
        if self.parameters.rule == "threshold":
            return max(1, share(length, steps, step))
        return -(-state.canvas.count(None) // max(1, steps - step))

    def _remask(self, state: TokenState, readings: dict[int, Reading]) -> None:
        """Steps until the network sees something new. Where nothing changed it would say the same again, and which positions
        are set does not depend on what was drawn there, so that the same draws serve."""
        p = self.parameters
        assert p.steps is not None and p.eta is not None
        start, end, changed = len(state.tokens), self._end(state), False
        while state.canvas_step < p.steps and not (changed and None in state.canvas[:end]):
            step = Remasking.of(state.canvas_step, p.steps, p.eta)
            for i, token in enumerate(state.canvas[:end]):
                if i == 0 and _leads(state):
                    continue  # a draw of next-token sampling, which needs no mending
                lot = uniform(state.seed, start + i, state.canvas_step, Purpose.UNMASK)
                if lot < (step.unmask if token is None else step.mask):
                    state.canvas[i] = readings[i].token if token is None else None
                    changed = True
            state.canvas_step += 1

    def _follow_posterior(self, state: TokenState, readings: dict[int, Reading]) -> None:
        start, steps, shown = len(state.tokens), self._steps(state), _shown(state)
        for i, reading in readings.items():
            state.canvas[i] = posterior_token(
                reading.token, shown[i], state.seed, start + i, state.canvas_step, steps, state.vocabulary
            )
        state.canvas_step += 1

    def _accept_anew(self, state: TokenState, readings: dict[int, Reading]) -> None:
        bound, steps = self.parameters.entropy_bound, self._steps(state)
        assert bound is not None
        accepted = within_entropy(list(readings.values()), bound)
        settled = self._settled(state, readings)
        if settled or (settled is None and len(accepted) == len(readings)):
            state.canvas_step = steps
        state.canvas_step += 1
        if settled is not None and state.canvas_step >= steps:
            state.canvas = list(state.guesses[-1])
            return
        whole = state.canvas_step >= steps
        for i, reading in readings.items():
            state.canvas[i] = reading.token if whole or i in accepted else None

    def _settled(self, state: TokenState, readings: dict[int, Reading]) -> bool | None:
        """Whether the likeliest tokens stay what they are and are sure; None where the rule does not look at them."""
        sure, times = self.parameters.confidence_threshold, self.parameters.stability_threshold
        if sure is None or times is None:
            return None
        guess = tuple(reading.token if reading.likeliest is None else reading.likeliest for reading in readings.values())
        stable = len(state.guesses) >= times and all(one == guess for one in state.guesses[len(state.guesses) - times :])
        state.guesses = [*state.guesses, guess][-max(1, times) :]
        return stable and sum(map(entropy, readings.values())) / len(readings) < sure


def _shown(state: TokenState) -> list[int]:
    """What the network sees of the canvas."""
    start, mask = len(state.tokens), state.mask_token
    return [
        token
        if token is not None
        else mask
        if mask is not None
        else random_token(state.seed, start + i, state.canvas_step, state.vocabulary)
        for i, token in enumerate(state.canvas)
    ]


def _leads(state: TokenState) -> bool:
    """Whether the canvas' first token is read at the end of the block before it."""
    return state.shift and state.attention != "full" and state.keepable == len(state.tokens)


def _room(state: TokenState) -> int:
    return state.limit - len(state.tokens)
