"""Plans for deadlines: which way is in time, by invented loads and costs."""

from __future__ import annotations

import pytest

from service.engine.base_request import Bucket
from service.engine.cost import ForwardCost
from service.engine.planning import (
    HEADROOM,
    RESERVE,
    Crowd,
    Way,
    first_in_time,
    forward_seconds,
    predicted,
    rows_in_time,
    seconds_left,
)

SMALL: Bucket = ("refine", 32, 32)
LARGE: Bucket = ("refine", 64, 64)
DECODE: Bucket = ("decode", 32, 32)


def cost(fixed: float, slope: float) -> ForwardCost:
    made = ForwardCost()
    for size in (1, 4, 16):
        made.observe(size, fixed + slope * size)
    return made


COSTS = {SMALL: cost(0.01, 0.001), LARGE: cost(0.02, 0.004), DECODE: cost(0.005, 0.002)}


def test_alone_a_picture_takes_its_rows_and_what_runs_once() -> None:
    assert predicted(Way(10, 20), SMALL, Crowd(32), COSTS) == pytest.approx(10 * 0.012)
    assert predicted(Way(10, 20), SMALL, Crowd(32), COSTS, [DECODE]) == pytest.approx(10 * 0.012 + 0.007)


def test_everybody_moves_once_while_a_request_moves_once() -> None:
    crowd = Crowd(32)
    for _ in range(5):
        crowd.add(SMALL, 2)
    crowd.add(LARGE, 1)
    assert predicted(Way(10, 10), SMALL, crowd, COSTS) == pytest.approx(10 * ((0.01 + 0.011) + (0.02 + 0.004)))
    crowd.add(LARGE, -1, -1)
    assert predicted(Way(10, 10), SMALL, crowd, COSTS) == pytest.approx(10 * (0.01 + 0.011))


def test_more_than_a_forward_holds_are_several() -> None:
    crowd = Crowd(4)
    for _ in range(8):
        crowd.add(SMALL, 1)
    assert predicted(Way(1, 1), SMALL, crowd, COSTS) == pytest.approx(3 * 0.01 + 9 * 0.001)


def test_a_forward_that_would_take_too_long_is_several() -> None:
    crowd = Crowd(32, seconds=0.02)  # 10 evaluations
    crowd.add(SMALL, 24, 12)
    assert predicted(Way(1, 2), SMALL, crowd, COSTS) == pytest.approx(3 * 0.01 + 26 * 0.001)


def test_another_model_with_work_takes_half_of_the_device() -> None:
    alone, shared = (predicted(Way(7, 7), SMALL, Crowd(32, models), COSTS, [DECODE]) for models in (1, 2))
    assert alone is not None and shared == pytest.approx(2 * alone)


def test_a_size_that_has_not_run_costs_as_its_pixels_say_and_an_unknown_stage_nothing() -> None:
    assert forward_seconds(COSTS, ("refine", 128, 128), 1.0) == pytest.approx(4 * 0.024)
    assert forward_seconds(COSTS, ("refine", 16, 32), 1.0) == pytest.approx(0.011 / 2)
    assert forward_seconds(COSTS, ("encode", 0, 0), 1.0) is None
    assert predicted(Way(3, 3), SMALL, Crowd(32), {}) is None
    assert predicted(Way(3, 3), SMALL, Crowd(32), {SMALL: ForwardCost()}) is None


def test_forwards_of_one_size_foretell_larger_ones_in_proportion() -> None:
    same = ForwardCost()
    assert same.seconds(1) is None
    same.observe(2, 0.1)
    assert [same.seconds(size) for size in (1, 2, 6)] == pytest.approx([0.1, 0.1, 0.3])


def test_the_best_way_that_is_in_time_is_taken_else_the_cheapest() -> None:
    assert first_in_time([4.0, 2.0, 1.0], 4.0 * HEADROOM) == 0
    assert first_in_time([4.0, 2.0, 1.0], 4.0) == 1
    assert first_in_time([4.0, 2.0, 1.0], 0.5) == 2
    assert first_in_time([4.0, 2.0, 1.0], -1.0) == 2
    assert first_in_time([None, None], 0.1) == 0


def test_a_part_of_the_time_is_kept_for_the_answer() -> None:
    assert seconds_left(now=12.0, arrived=10.0, deadline=20.0) == pytest.approx(8.0 - RESERVE * 10.0)


@pytest.mark.parametrize("left,most,rows", [(1.0, 8, 8), (0.5, 8, 4), (0.5, 3, 3), (0.05, 8, 1), (-3.0, 8, 1)])
def test_as_many_rows_as_there_is_time_for(left: float, most: int, rows: int) -> None:
    assert rows_in_time(0.1, 0.04, left, most) == rows


def test_without_costs_nothing_is_shortened() -> None:
    assert rows_in_time(None, 0.0, 0.001, 6) == 6
