"""Jumps of a flow map beyond the plain chain: gamma sampling, restarts, and plans that are changed in mid-flight."""

from __future__ import annotations

from itertools import pairwise

import pytest

from service.procedures.noise import FlowTimes, NoiseProcess, SigmaTimes
from service.procedures.parameters import ConsistencyParameters, FlowMapParameters, RestartParameters
from service.procedures.tables import SamplerTable
from service.procedures.underway import Underway
from tests.procedures.test_samplers_order import DEVIATION, MEAN, START, average_velocity, exact_map, flow_levels, moments, run

COLUMNS = ("t", "s", "a", "b", "d", "alpha", "sigma", "level")


def remaining_jumps(noise: NoiseProcess, alpha: float, sigma: float, count: int) -> SamplerTable:
    return FlowMapParameters(steps=count).table(Underway.of(noise, alpha, sigma))


def test_gamma_0_is_a_chain_of_jumps_and_gamma_1_is_consistency_sampling() -> None:
    plain, whole = FlowMapParameters(gamma=0.0).table(), FlowMapParameters(gamma=1.0).table()
    assert plain.d == (0.0,) * 4 and plain.s == (*plain.t[1:], 0.0)
    consistency = ConsistencyParameters().table()
    for column in COLUMNS:
        assert getattr(whole, column) == pytest.approx(getattr(consistency, column), abs=1e-12)


@pytest.mark.parametrize("gamma", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gamma_sampling_of_the_exact_map_has_the_moments_of_the_data(gamma: float, steps: int) -> None:
    table = FlowMapParameters(steps=steps, gamma=gamma).table()
    assert moments(table, average_velocity, 0.0, 1.0) == pytest.approx((MEAN, DEVIATION**2), abs=1e-12)


def test_gamma_sampling_of_ctm_is_its_algorithm() -> None:
    """arXiv 2310.02279, algorithm 3: jump to sqrt(1 - gamma^2) s by (s/t) x + (1 - s/t) g, then add gamma s times noise."""
    gamma, noise = 0.6, NoiseProcess(times=SigmaTimes(), prediction="data")
    table = FlowMapParameters(steps=3, gamma=gamma).table(noise)
    sigmas = noise.grid(3).sigmas
    for row, (t, s) in enumerate(pairwise(sigmas)):
        landing = (1.0 - gamma**2) ** 0.5 * s
        assert table.s[row] == pytest.approx(landing)
        a, b, *_, d, _, _ = table.coefficients(row)
        assert (a, b, d) == pytest.approx((landing / t, 1.0 - landing / t, gamma * s))


@pytest.mark.parametrize(("restarts", "jumps"), [(1, 1), (3, 2)])
def test_restarts_of_the_exact_map_have_the_moments_of_the_data(restarts: int, jumps: int) -> None:
    table = RestartParameters(steps=2, restarts=restarts, jumps=jumps, level=0.4).table()
    assert len(table) == 2 + restarts * jumps
    assert table.t[2] == pytest.approx(0.4) and table.s[1] == 0.0
    assert moments(table, average_velocity, 0.0, 1.0) == pytest.approx((MEAN, DEVIATION**2), abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_plan_that_is_changed_in_mid_flight_still_arrives(count: int) -> None:
    noise = NoiseProcess()
    planned = FlowMapParameters(steps=6).table(noise)
    alpha, sigma = planned.alpha[2], planned.sigma[2]
    rest = remaining_jumps(noise, alpha, sigma, count)
    assert len(rest) == count and rest.takes_target
    assert (rest.t[0], rest.start) == (planned.t[3], (alpha, sigma))
    assert rest.s[-1] == 0.0
    here = exact_map(START, flow_levels, 1.0, planned.t[3])
    assert run(rest, average_velocity, here) == pytest.approx(exact_map(START, flow_levels, 1.0, 0.0), abs=1e-12)


@pytest.mark.parametrize("times", [FlowTimes(), FlowTimes(unit=1000.0, shift_of_jumps=None)])
def test_the_same_plan_again_is_the_same_rows(times: FlowTimes) -> None:
    noise = NoiseProcess(times=times)
    planned = FlowMapParameters(steps=6).table(noise)
    rest = remaining_jumps(noise, planned.alpha[1], planned.sigma[1], 4)
    for column in COLUMNS:
        assert getattr(rest, column) == pytest.approx(getattr(planned, column)[2:], abs=1e-9)
    assert remaining_jumps(noise, *planned.start, 6).t == pytest.approx(planned.t)


@pytest.mark.parametrize("sigma", [30.0, 0.001])
def test_exploding_noise_is_planned_anew_down_to_the_data(sigma: float) -> None:
    rest = remaining_jumps(NoiseProcess(times=SigmaTimes(), prediction="data"), 1.0, sigma, 3)
    assert rest.start == (1.0, sigma) and rest.sigma[-1] == 0.0
    assert list(rest.t) == sorted(rest.t, reverse=True) and rest.t[0] == sigma


def test_nothing_is_left_to_plan_at_the_data() -> None:
    with pytest.raises(ValueError, match="not data"):
        remaining_jumps(NoiseProcess(), 1.0, 0.0, 2)
