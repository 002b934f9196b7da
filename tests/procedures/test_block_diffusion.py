"""Block diffusion as a pure procedure: readings in, rows and committed tokens out."""

from __future__ import annotations

import msgspec
import pytest

from service.procedures.block_diffusion import BlockDiffusion, BlockDiffusionParameters
from service.procedures.types import Reading, TokenState

MASK = 99


def begin(prompt: int = 3, limit: int = 20, **parameters: object) -> tuple[BlockDiffusion, TokenState]:
    procedure = BlockDiffusion(BlockDiffusionParameters(**{"block_length": 4, **parameters}))  # type: ignore[arg-type]
    return procedure, TokenState(list(range(prompt)), prompt, limit, MASK)


def test_the_first_forward_holds_the_prompt_and_a_masked_canvas() -> None:
    procedure, state = begin()
    prompt, canvas = procedure.propose(state)
    assert prompt.tokens == (0, 1, 2) and prompt.keep and prompt.mode == "causal" and prompt.wanted == ()
    assert canvas.tokens == (MASK,) * 4 and canvas.start == 3 and canvas.mode == "block" and not canvas.keep
    assert canvas.wanted == (0, 1, 2, 3)


def test_threshold_sets_all_that_are_sure_and_the_leftmost_however_unsure() -> None:
    procedure, state = begin(rule="threshold", threshold=0.9)
    procedure.propose(state)
    procedure.fold(state, [Reading(10, 0.1), Reading(11, 0.2), Reading(12, 0.91), Reading(13, 0.9)])
    assert state.canvas == [10, None, 12, None]
    procedure.propose(state)
    procedure.fold(state, [Reading(21, 0.1), Reading(23, 0.3)])
    assert state.canvas == [10, 21, 12, None] and state.generated == 0


def test_confidence_sets_its_share_each_step_the_surest_first() -> None:
    procedure, state = begin(rule="confidence", steps=2)
    procedure.propose(state)
    procedure.fold(state, [Reading(10, 0.1), Reading(11, 0.4), Reading(12, 0.3), Reading(13, 0.2)])
    assert state.canvas == [None, 11, 12, None]
    row = procedure.propose(state)[-1]
    assert row.tokens == (MASK, 11, 12, MASK) and row.wanted == (0, 3) and row.draw == 1
    procedure.fold(state, [Reading(20, 0.1), Reading(23, 0.1)])
    assert state.tokens == [0, 1, 2, 20, 11, 12, 23] and state.canvas == []


def test_the_commit_rides_with_the_next_canvas() -> None:
    procedure, state = begin(rule="confidence", steps=1)
    procedure.propose(state)
    state.cached = 3
    procedure.fold(state, [Reading(10 + i, 0.5) for i in range(4)])
    commit, canvas = procedure.propose(state)
    assert commit.tokens == (10, 11, 12, 13) and commit.start == 3 and commit.keep
    assert canvas.start == 7 and canvas.draw == 0


def test_a_canvas_beyond_the_limit_commits_what_fits() -> None:
    procedure, state = begin(limit=5, rule="confidence", steps=1)
    procedure.propose(state)
    procedure.fold(state, [Reading(10 + i, 0.5) for i in range(4)])
    assert state.tokens == [0, 1, 2, 10, 11]


def test_each_rule_has_its_own_parameter() -> None:
    assert BlockDiffusionParameters(rule="threshold").threshold == 0.9
    assert BlockDiffusionParameters(rule="confidence", block_length=8).steps == 4
    for wrong in ({"steps": 3}, {"rule": "confidence", "threshold": 0.5}, {"rule": "confidence", "steps": 17}):
        with pytest.raises(ValueError, match="`"):
            BlockDiffusionParameters(**wrong)  # type: ignore[arg-type]
    complete = msgspec.to_builtins(BlockDiffusionParameters(rule="threshold"))
    assert msgspec.convert(complete, BlockDiffusionParameters).threshold == 0.9
