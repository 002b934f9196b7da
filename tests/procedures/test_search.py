"""Weights and resampling of a search, without a picture."""

from __future__ import annotations

import math
from collections import Counter

import msgspec
import pytest

from service.procedures.parameters import ConsistencyParameters, DdimParameters, EulerParameters
from service.procedures.search import METHODS, Particles, Search, in_place, potential, resampling_rows, systematic


def test_everyone_gets_its_share_but_for_less_than_one() -> None:
    weights = [0.1, 3.2, 0.0, 1.7, 2.5, 0.5]
    logs = [math.log(weight) if weight else -math.inf for weight in weights]
    total = Counter[int]()
    lots = [(i + 0.5) / 400 for i in range(400)]
    for lot in lots:
        counts = Counter(systematic(logs, lot))
        assert sum(counts.values()) == 6 and counts[2] == 0
        for i, weight in enumerate(weights):
            assert abs(counts[i] - 6 * weight / sum(weights)) < 1.0
        total.update(counts)
    for i, weight in enumerate(weights):
        assert total[i] / len(lots) == pytest.approx(6 * weight / sum(weights), abs=0.02)


@pytest.mark.parametrize("lot", [0.0, 0.3, 0.999999])
@pytest.mark.parametrize("count", [2, 7, 64])
def test_equal_weights_leave_everything_as_it_is(lot: float, count: int) -> None:
    assert systematic([0.7] * count, lot) == list(range(count))


def test_one_that_outweighs_all_is_everybodys_ancestor() -> None:
    assert systematic([-2000.0, 5000.0, 0.0], 0.4) == [1, 1, 1]


def test_whoever_has_descendants_stays_where_it_is() -> None:
    assert in_place([0, 0, 0, 3]) == [0, 0, 0, 3]
    assert in_place([1, 1, 3, 3]) == [1, 1, 3, 3]
    assert in_place([0, 2, 2, 2]) == [0, 2, 2, 2]
    assert in_place([3, 3, 3, 0]) == [0, 3, 3, 3]


def test_potentials_follow_their_line() -> None:
    """The product of the differences is exp(r / T) of the last score (arXiv 2501.06848, section 3.1)."""
    scores, temperature = [0.2, 0.7, 0.4], 0.5
    logs, before = list[float](), None
    for score in scores:
        log, before = potential("difference", temperature, before, score)
        logs.append(log)
    assert sum(logs) == pytest.approx(0.4 / temperature)
    highest = [0.2, 0.7, 0.7]
    sums = [0.2, 0.9, 1.3]
    for kind, expected in (("max", highest), ("sum", sums)):
        before = None
        for score, value in zip(scores, expected, strict=True):
            log, before = potential(kind, temperature, before, score)
            assert (log, before) == (pytest.approx(value / temperature), pytest.approx(value))


def test_negative_scores_have_a_highest_too() -> None:
    assert potential("max", 1.0, None, -3.0) == (-3.0, -3.0)


def test_resampling_is_where_noise_is_still_to_come() -> None:
    assert resampling_rows(EulerParameters(steps=8).table().d, 1) == frozenset()
    noisy = DdimParameters(steps=8, eta=1.0).table().d
    assert resampling_rows(noisy, 1) == frozenset(range(7)) and noisy[6] > 0.0 == noisy[7]
    assert resampling_rows(noisy, 3) == {2, 5}
    assert resampling_rows(ConsistencyParameters(steps=1).table().d, 1) == frozenset()


@pytest.mark.parametrize("given", [{"particles": 1}, {"temperature": 0.0}, {"every": 0}, {"potential": "min"}, {"candidates": 4}])
def test_what_is_out_of_range_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"method": "particles", "scorer": "any", **given}, Particles)


def test_a_search_crosses_the_wire_as_it_is() -> None:
    for name, kind in METHODS.items():
        search = kind(scorer="sharpness")
        wire = msgspec.msgpack.encode(search)
        assert msgspec.msgpack.decode(wire, type=Search) == search and msgspec.msgpack.decode(wire)["method"] == name
