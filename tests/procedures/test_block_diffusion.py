"""Block diffusion as a pure procedure: readings in, rows and committed tokens out."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from service.procedures.block_diffusion import BlockDiffusion, BlockDiffusionParameters
from service.procedures.block_diffusion_parameters import Rule
from service.procedures.masked_diffusion import MaskedDiffusion, MaskedDiffusionParameters
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


def test_what_lies_beyond_the_limit_is_not_drawn() -> None:
    procedure, state = begin(limit=5, rule="confidence", steps=2)
    row = procedure.propose(state)[-1]
    assert len(row.tokens) == 4 and row.wanted == (0, 1)
    procedure.fold(state, [Reading(10, 0.5), Reading(11, 0.5)])
    assert state.tokens == [0, 1, 2, 10, 11]


def test_nothing_is_drawn_behind_a_token_that_ends_the_text() -> None:
    procedure, state = begin(rule="confidence", steps=4)
    state.stops, state.floor = frozenset({7}), 4
    procedure.propose(state)
    procedure.fold(state, [Reading(10, 0.1), Reading(11, 0.2), Reading(7, 0.9), Reading(13, 0.3)])
    assert procedure.propose(state)[-1].wanted == (0, 1)
    procedure.fold(state, [Reading(20, 0.1), Reading(21, 0.2)])
    assert procedure.propose(state)[-1].wanted == (0,)
    procedure.fold(state, [Reading(30, 0.1)])
    assert state.tokens == [0, 1, 2, 30, 21, 7] and state.canvas == []  # three forwards of four, and no fourth token


def test_a_token_that_would_end_the_text_too_early_does_not() -> None:
    procedure, state = begin(rule="confidence", steps=4)
    state.stops, state.floor = frozenset({7}), 6
    procedure.propose(state)
    procedure.fold(state, [Reading(10, 0.1), Reading(11, 0.2), Reading(7, 0.9), Reading(13, 0.3)])
    assert procedure.propose(state)[-1].wanted == (0, 1, 3)


@pytest.mark.parametrize(
    "rule,parameters,chosen",
    [
        ("threshold", {"threshold": 0.5}, {0, 1, 3}),
        ("threshold", {"threshold": 0.8, "steps": 2}, {1, 3}),  # two are due, one is above
        ("threshold", {"threshold": 0.3, "steps": 4}, {1, 2, 3}),  # one is due, three are above
        ("threshold", {"factor": 0.3}, {0, 1}),  # 2 (1 - 0.9) < 0.3 <= 3 (1 - 0.6), and the leftmost
        ("threshold", {"factor": 1.3}, {0, 1, 3}),  # 3 (1 - 0.6) < 1.3 <= 4 (1 - 0.4)
        ("confidence", {"steps": 2}, {1, 3}),
        ("margin", {"steps": 2}, {0, 2}),
        ("entropy", {"steps": 4}, {2}),
        ("entropy_bound", {"entropy_bound": 0.0}, {2}),
        ("entropy_bound", {"entropy_bound": 0.2}, {2, 1}),  # 0.2 + 0.5 - 0.5 <= 0.2 < 0.2 + 0.5 + 0.6 - 0.6
        ("entropy_bound", {"entropy_bound": 0.71}, {2, 1, 0}),
        ("entropy_bound", {"entropy_bound": 0.0, "steps": 2}, {2, 1}),
    ],
)
def test_each_rule_sets_what_its_definition_says(rule: str, parameters: dict[str, float], chosen: set[int]) -> None:
    procedure, state = begin(rule=rule, **parameters)
    assert procedure.propose(state)[-1].spread == (rule in ("margin", "entropy", "entropy_bound"))
    measures = [(0.2, 0.6, 0.5), (0.9, 0.5, 0.1), (0.4, 0.2, 0.6), (0.6, 0.9, 0.2)]  # confidence, entropy, margin
    procedure.fold(state, [Reading(10 + i, c, entropy=h, margin=m) for i, (c, h, m) in enumerate(measures)])
    assert {i for i, token in enumerate(state.canvas) if token is not None} == chosen


def test_each_rule_has_its_own_parameter() -> None:
    assert BlockDiffusionParameters(rule="threshold").threshold == 0.9
    assert BlockDiffusionParameters(rule="threshold", factor=1.0).threshold is None
    assert BlockDiffusionParameters(rule="confidence", block_length=8).steps == 4
    assert BlockDiffusionParameters(rule="entropy_bound").steps is None
    assert BlockDiffusionParameters(rule="remask", steps=100).eta == 0.04
    for wrong in (
        {"eta": 0.1}, {"rule": "confidence", "threshold": 0.5}, {"rule": "confidence", "steps": 17}, {"steps": 17},
        {"threshold": 0.5, "factor": 1.0}, {"rule": "entropy", "entropy_bound": 1.0}, {"rule": "remask", "factor": 1.0},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="`"):
            BlockDiffusionParameters(**wrong)  # type: ignore[arg-type]
    for rule in get_args(Rule):
        parameters = BlockDiffusionParameters(rule=rule)
        assert msgspec.convert(msgspec.to_builtins(parameters), BlockDiffusionParameters) == parameters
    factor = BlockDiffusionParameters(factor=2.0)
    assert msgspec.convert(msgspec.to_builtins(factor), BlockDiffusionParameters) == factor


def test_parts_of_a_canvas_that_the_limit_cuts_short_begin_at_its_left() -> None:
    parameters = MaskedDiffusionParameters(block_length=16, sub_block_length=4, rule="confidence")
    state = TokenState([1, 2, 3], 3, 9, MASK, "full")
    row = MaskedDiffusion(parameters).propose(state)[-1]
    assert row.wanted == (3, 4, 5, 6), "of a canvas of 6"
