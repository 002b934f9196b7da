"""What a quality or a deadline may become, from tables of measured quality and without one."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from service.engine.choosing import QUALITIES, Quality, decide
from service.engine.messages import ModelCard
from service.engine.validation import InvalidField
from service.procedures.quality import MeasuredQuality, QualityTable


def row(name: str, steps: int, nfe: int, **measured: Any) -> MeasuredQuality:
    choice = {"name": name, "steps": steps, "guidance": 2.0}
    return MeasuredQuality(procedure=choice, nfe=nfe, date=datetime.date(2026, 11, 26), **{"samples": 500, **measured})


def card(*rows: MeasuredQuality, **fields: Any) -> ModelCard:
    table = QualityTable(features="some", rows=list(rows)) if rows else None
    procedures = ["euler", "heun", "dpmpp_2m", "flow_map"]
    signature = ["velocity(x,t)", "flow_map(x,t,s)"]
    defaults = {"default_procedure": "euler", "guidance_input": "jumps", "guidance_range": (1.0, 4.0), "quality": table}
    counts = {"parameters_count": 1, "vocab_size": 0, "max_model_len": 0}
    return ModelCard("m", "image", "", signature, procedures, **counts, **defaults | fields)


CORRECT = card(
    row("flow_map", 1, 1, correct=0.3), row("flow_map", 4, 4, correct=0.6), row("euler", 3, 6, correct=0.55),
    row("euler", 10, 20, correct=0.9), row("heun", 5, 18, correct=0.95), row("euler", 50, 100, correct=0.95),
)  # fmt: skip


def chosen(
    of: ModelCard, procedure: dict[str, Any] | None = None, quality: Any = None, negative: bool = False
) -> list[tuple[str, int, int]]:
    """With a deadline: names, steps and evaluations, best first."""
    choices = decide(of, procedure, quality, hurried=True, negative=negative).choices
    return [(choice.procedure, choice.parameters["steps"], choice.nfe) for choice in choices]


def test_a_deadline_may_leave_what_nothing_cheaper_is_better_than() -> None:
    assert chosen(CORRECT) == [("heun", 5, 18), ("flow_map", 4, 4), ("flow_map", 1, 1)]


@pytest.mark.parametrize("quality,steps", [("draft", ("flow_map", 4)), ("balanced", ("heun", 5)), ("best", ("heun", 5))])
def test_a_quality_is_the_cheapest_that_reaches_its_share(quality: Quality, steps: tuple[str, int]) -> None:
    decision = decide(CORRECT, None, quality, hurried=False, negative=False)
    assert (decision.procedure, decision.parameters["steps"]) == steps and decision.choices == []
    assert chosen(CORRECT, None, quality)[0][:2] == steps


def test_what_the_request_says_holds_for_every_choice() -> None:
    assert chosen(CORRECT, {"name": "euler"}) == [("euler", 50, 100), ("euler", 10, 20), ("euler", 3, 6)]
    unguided = [("heun", 5, 9), ("flow_map", 4, 4), ("euler", 3, 3), ("flow_map", 1, 1)]
    assert chosen(CORRECT, {"guidance": 1.0}) == unguided


def test_choices_that_the_request_forbids_are_left_out_and_an_error_comes_when_none_is_left() -> None:
    assert chosen(CORRECT, {"guidance": 7.0}) == [("heun", 5, 18), ("euler", 3, 6)]  # flow_map knows up to 4
    assert chosen(CORRECT, negative=True) == [("heun", 5, 18), ("euler", 3, 6)]  # and no negative prompt
    with pytest.raises(InvalidField) as error:
        decide(CORRECT, {"name": "flow_map", "guidance": 7.0}, "best", hurried=False, negative=False)
    assert error.value.param == "procedure.guidance"
    with pytest.raises(InvalidField) as error:
        decide(CORRECT, {"name": "flow_map"}, "best", hurried=True, negative=True)
    assert error.value.param == "negative_prompt"


def test_where_nothing_can_say_what_is_correct_a_smaller_distance_is_better() -> None:
    frechet = card(
        row("euler", 5, 10, frechet=4.0), row("euler", 10, 20, frechet=2.0), row("euler", 20, 40, frechet=1.9),
        row("dpmpp_2m", 5, 10, frechet=0.5, samples=90),
    )  # fmt: skip
    assert chosen(frechet) == [("euler", 20, 40), ("euler", 10, 20), ("euler", 5, 10)]  # 90 samples cannot be compared
    assert chosen(frechet, quality="balanced")[0] == ("euler", 10, 20)
    assert chosen(frechet, quality="draft")[0] == ("euler", 10, 20)


def test_without_a_table_the_default_s_steps_are_the_best_and_shares_of_them_the_rest() -> None:
    bare = card(procedure_defaults={"steps": 28, "guidance": 4.5})
    best = [28, 21, 14, 11, 7, 4]
    assert chosen(bare) == [("euler", steps, 2 * steps) for steps in best]
    assert [decide(bare, None, quality, False, False).parameters["steps"] for quality in QUALITIES] == [7, 14, 28]
    assert chosen(card(procedure_defaults={"steps": 1, "guidance": 1.0})) == [("euler", 1, 1)]
    assert [steps for _, steps, _ in chosen(CORRECT, {"name": "dpmpp_2m"})] == [20, 15, 10, 8, 5, 3]


@pytest.mark.parametrize("own", [{"steps": 3}, {"name": "flow_map", "timesteps": [1.0, 0.5]}])
def test_steps_of_its_own_keep_a_request_from_being_shortened(own: dict[str, Any]) -> None:
    assert chosen(CORRECT, own) == []
    with pytest.raises(InvalidField, match="best chooses the number of steps"):
        decide(CORRECT, own, "best", hurried=True, negative=False)


def test_neither_quality_nor_deadline_is_the_default() -> None:
    decision = decide(CORRECT, None, None, hurried=False, negative=False)
    assert (decision.procedure, decision.parameters["steps"], decision.choices) == ("euler", 20, [])


def test_another_sampler_keeps_the_model_s_guidance_and_has_steps_of_its_own() -> None:
    turbo = card(procedure_defaults={"steps": 1, "guidance": 1.0})
    named = decide(turbo, {"name": "dpmpp_2m"}, None, hurried=False, negative=False).parameters
    assert (named["steps"], named["guidance"]) == (20, 1.0)
    assert decide(turbo, {"name": "heun", "guidance": 2.5}, None, hurried=False, negative=False).parameters["guidance"] == 2.5
