"""Remasking: what is set may be masked again, and the noise level after every step is the schedule's whatever eta is."""

from __future__ import annotations

from itertools import pairwise

import pytest

from service.procedures.block_diffusion import BlockDiffusion, BlockDiffusionParameters
from service.procedures.remasking import Remasking
from service.procedures.types import Reading, TokenState

MASK = 99


@pytest.mark.parametrize("eta", [0.0, 0.04, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 7, 32])
def test_after_every_step_a_position_is_set_with_the_probability_of_the_schedule(steps: int, eta: float) -> None:
    is_set = 0.0
    for i in range(steps):
        step = Remasking.of(i, steps, eta)
        assert 0.0 <= step.mask <= min(eta, 1.0) and 0.0 <= step.unmask <= 1.0
        is_set = is_set * (1.0 - step.mask) + (1.0 - is_set) * step.unmask
        assert is_set == pytest.approx((i + 1) / steps)
    assert is_set == 1.0 or steps > 1


def run(seed: int, eta: float, steps: int, length: int = 64) -> tuple[list[list[int | None]], TokenState, int]:
    """Canvases after each forward, the state at the end, and the forwards; what is read is different in every forward."""
    procedure = BlockDiffusion(BlockDiffusionParameters(block_length=length, rule="remask", eta=eta, steps=steps))
    state = TokenState([1, 2, 3], 3, 1000, MASK, seed=seed)
    seen, forwards = [], 0
    while state.generated == 0:
        row = procedure.propose(state)[-1]
        assert all(row.tokens[offset] == MASK for offset in row.wanted)
        forwards += 1
        procedure.fold(state, [Reading(100 * forwards + offset, 0.5) for offset in row.wanted])
        seen.append(list(state.canvas))
    return seen, state, forwards


def test_tokens_are_masked_again_only_with_eta_and_the_end_has_none_masked() -> None:
    def masked_again(seen: list[list[int | None]]) -> int:
        pairs = pairwise(seen[:-1])  # the last one is committed, and empty
        return sum(a is not None and b is None for before, after in pairs for a, b in zip(before, after, strict=True))

    for eta, expected in ((0.0, False), (0.2, True)):
        seen, state, forwards = run(5, eta, 16)
        assert (masked_again(seen) > 0) == expected
        assert forwards <= 16 and state.generated == 64 and MASK not in state.tokens


def test_a_step_that_changes_nothing_costs_no_forward() -> None:
    _, state, forwards = run(5, 0.0, 200, length=8)
    assert forwards <= 8 and state.generated == 8


def test_the_share_that_is_set_follows_the_schedule() -> None:
    length, steps = 256, 8
    counts = [0.0] * steps
    for seed in range(8):
        for i, canvas in enumerate(run(seed, 0.1, steps, length)[0][: steps - 1]):
            counts[i] += sum(token is not None for token in canvas) / length / 8
    for i in range(steps - 1):
        assert counts[i] == pytest.approx((i + 1) / steps, abs=0.05)  # 2048 positions: four standard deviations are 0.044
