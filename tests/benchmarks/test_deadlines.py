"""The benchmark of deadlines: its load, its figures, and that it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.deadlines import ARMS, Answer, Load, Plan, arrivals, measure, picture, table


def test_the_load_doubles_in_the_middle_and_is_the_same_for_the_same_seed() -> None:
    load = Load(rate=20.0, seconds=40.0, deadline=1.0)
    plan = arrivals(load, 3)
    first, second = ([a for a in plan if a.doubled == half] for half in (False, True))
    assert all(a.at < 20.0 for a in first) and all(20.0 <= a.at < 40.0 for a in second)
    assert len(first) == pytest.approx(400, rel=0.2) and len(second) == pytest.approx(800, rel=0.15)
    assert plan == arrivals(load, 3) != arrivals(load, 4)


def test_late_answers_and_refused_requests_are_not_within_the_deadline(tmp_path: Path) -> None:
    answers = [
        Answer("fixed", 0.1, False, 0.5, 100, True), Answer("fixed", 0.2, False, 2.0, 100, False),
        Answer("fixed", 0.3, False, 0.4), Answer("fixed", 0.4, False, 0.6, 50, True, cut=True),
    ]  # fmt: skip
    (line,) = table(answers, 1.0)[2:]
    assert line == "| base | fixed | 4 | 50.0% | 0.55 | 1.96 | 83.3 | 66.7% | 1 |"
    picture(answers, Load(1.0, 2.0, 1.0), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_small_run_answers_every_request_in_both_arms() -> None:
    plan = Plan(seconds=3.0, share=0.5, times=3.0, turns=[1], known=(3.0, 1.0), quality="draft")
    measured = measure(plan)
    expected = len(arrivals(measured.load, 1))
    assert [sum(a.arm == arm for a in measured.answers) for arm in ARMS] == [expected, expected] and expected > 0
    fixed = {a.nfe for a in measured.answers if a.arm == "fixed" and a.nfe is not None}
    assert len(fixed) <= 1 and all(a.nfe <= max(fixed) for a in measured.answers if a.nfe is not None and fixed)
