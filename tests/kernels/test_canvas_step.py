"""A step of canvases decides what the procedures decide from the same readings, and sets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kernels import canvas_step
from kernels.canvas_step import Readings, Rule, Selection
from kernels.token_sampling import draw_tokens, reference
from service.procedures.block_diffusion import BlockDiffusion
from service.procedures.block_diffusion_parameters import BlockDiffusionParameters
from service.procedures.types import Reading, TokenState

MASK = 99
ON = "cuda" if torch.cuda.is_available() else "cpu"
RULES = {
    "confidence": Rule.CONFIDENCE, "margin": Rule.MARGIN, "entropy": Rule.ENTROPY, "entropy_bound": Rule.ENTROPY_BOUND
}  # fmt: skip


@pytest.fixture(autouse=True, params=["torch", "triton"])
def version(request: pytest.FixtureRequest) -> None:
    if request.param == "triton":
        request.getfixturevalue("triton_preferred")


@dataclass(frozen=True)
class Canvas:
    """One canvas with a rule, and what was read at its open positions."""

    parameters: BlockDiffusionParameters
    state: TokenState
    readings: list[Reading]

    def expected(self) -> list[int | None]:
        procedure, canvas = BlockDiffusion(self.parameters), list(self.state.canvas)
        offsets = procedure._wanted(self.state)
        for i in procedure._chosen(self.state, self.readings):
            canvas[offsets[i]] = self.readings[i].token
        return canvas

    def selection(self) -> tuple[int, float, int, bool]:
        p, due = self.parameters, BlockDiffusion(self.parameters)._due(self.state)
        if p.rule == "threshold":
            value = p.threshold or 0.0 if p.factor is None else p.factor
            rule = Rule.THRESHOLD if p.factor is None else Rule.FACTOR
            return rule, value, 0 if p.steps is None else due, p.steps is None
        if p.rule == "entropy_bound":
            assert p.entropy_bound is not None
            return Rule.ENTROPY_BOUND, p.entropy_bound, 0 if p.steps is None else due, False
        return RULES[p.rule], 0.0, due, False


KINDS: list[dict[str, Any]] = [
    {"threshold": 0.5}, {"threshold": 0.99}, {"threshold": 0.5, "steps": 3}, {"factor": 1.0}, {"factor": 3.0},
    {"rule": "confidence", "steps": 2}, {"rule": "margin", "steps": 3}, {"rule": "entropy", "steps": 1},
    {"rule": "entropy_bound", "entropy_bound": 1.0}, {"rule": "entropy_bound", "entropy_bound": 0.0},
    {"rule": "entropy_bound", "entropy_bound": 0.5, "steps": 2},
]  # fmt: skip


def canvas_of(data: st.DataObject, length: int) -> Canvas:
    kind = data.draw(st.sampled_from([kind for kind in KINDS if int(kind.get("steps", 1)) <= length]))
    parameters = BlockDiffusionParameters(block_length=length, **kind)
    state = TokenState([5], 1, 1 + length, MASK)
    state.canvas = [data.draw(st.sampled_from([None, None, 7])) for _ in range(length)]
    state.canvas[data.draw(st.integers(0, length - 1))] = None
    state.canvas_step = data.draw(st.integers(0, 2))
    # Few different numbers, so that many are equal; all are float32.
    number = st.integers(0, 8).map(lambda n: n / 8)
    count = state.canvas.count(None)
    readings = [
        Reading(100 + i, data.draw(number), entropy=data.draw(number), margin=data.draw(number)) for i in range(count)
    ]
    return Canvas(parameters, state, readings)


@settings(max_examples=12, deadline=None, phases=[Phase.generate])
@given(st.data())
def test_a_batch_of_canvases_is_decided_as_the_procedures_decide(data: st.DataObject) -> None:
    length = data.draw(st.sampled_from([1, 2, 5, 16, 17, 33]))
    canvases = [canvas_of(data, length) for _ in range(data.draw(st.integers(1, 3)))]
    rows = [reading for each in canvases for reading in each.readings]
    shown = torch.tensor([[-1 if t is None else t for t in each.state.canvas] for each in canvases], device=ON)
    reading = torch.full_like(shown, -1)
    reading[shown < 0] = torch.arange(len(rows), device=ON)
    rule, value, due, leftmost = zip(*(each.selection() for each in canvases), strict=True)
    selection = Selection(
        torch.tensor(rule, dtype=torch.int32, device=ON), torch.tensor(value, dtype=torch.float64, device=ON),
        torch.tensor(due, dtype=torch.int32, device=ON), torch.tensor(leftmost, device=ON),
    )  # fmt: skip
    columns = (torch.tensor([getattr(r, n) for r in rows], device=ON) for n in ("confidence", "entropy", "margin"))
    tokens = torch.tensor([r.token for r in rows], device=ON)
    before = shown.clone()
    chosen = canvas_step.select(shown, reading, Readings(tokens, *columns, tokens), selection)
    assert shown.tolist() == [[-1 if t is None else t for t in each.expected()] for each in canvases]
    assert torch.equal(chosen, shown != before)


def test_a_canvas_that_nothing_was_read_of_stays_as_it_is() -> None:
    canvas = torch.full((1, 4), -1, device=ON)
    one = torch.ones(1, device=ON)
    nothing = Readings(one.long(), one, one, one, one.long())
    selection = Selection(one.int() * 0, one.double() * 0, one.int() * 4, one.bool())
    assert not bool(canvas_step.select(canvas, torch.full_like(canvas, -1), nothing, selection).any())
    assert canvas.tolist() == [[-1] * 4]


def test_shapes_that_do_not_fit_are_refused() -> None:
    one = torch.ones(1)
    nothing = Readings(one.long(), one, one, one, one.long())
    with pytest.raises(ValueError, match="do not fit"):
        canvas_step.select(torch.zeros(2, 3).long(), torch.zeros(2, 4).long(), nothing, Selection(*[torch.ones(2)] * 4))


def test_reading_gives_what_drawing_and_measuring_give() -> None:
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(2)).to(ON)
    logits[:, 7] = float("-inf")
    fill = lambda value: torch.full((3,), value, device=ON)  # noqa: E731
    warmth = torch.tensor([1.0, 0.5, 2.0], device=ON)
    columns = fill(0), fill(1.0), fill(0.1), torch.arange(3, device=ON), torch.arange(3, device=ON), 4
    asked = torch.tensor([2, 0], device=ON)
    got = canvas_step.read(logits, fill(0.9), *columns, asked, warmth[asked])
    token, confidence = draw_tokens(logits, fill(0.9), *columns)
    entropy, margin = reference.spread(logits[asked], warmth[asked])
    assert torch.equal(got.token, token) and torch.equal(got.likeliest, logits[asked].argmax(-1))
    for ours, theirs in ((got.confidence, confidence), (got.entropy, entropy), (got.margin, margin)):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)
