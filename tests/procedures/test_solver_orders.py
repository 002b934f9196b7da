"""Orders of convergence of the solvers for every prediction, and churn, on Gaussian data (see test_samplers_order.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from service.procedures.churn import raised_nodes
from service.procedures.ddim import ddim
from service.procedures.ddpm import ddpm
from service.procedures.dpmpp_2m import dpmpp_2m
from service.procedures.euler import euler
from service.procedures.heun import heun
from service.procedures.noise import NoiseProcess, SigmaTimes
from service.procedures.tables import Grid, Prediction, SamplerTable, flow_grid
from service.procedures.unipc import Solver, unipc
from tests.procedures.test_samplers_order import (
    DEVIATION,
    MEAN,
    cosine_levels,
    end_error,
    exact_network,
    exploding_levels,
    flow_levels,
    log_snr_grid,
    moments,
    observed_order,
    run,
)

PREDICTIONS: list[Prediction] = ["velocity", "noise", "data", "v"]


def levels_of(prediction: Prediction) -> Callable[[float], tuple[float, float]]:
    return flow_levels if prediction == "velocity" else cosine_levels


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", ["bh1", "bh2"])
def test_unipc_has_order_3_in_log_snr(prediction: Prediction, solver: Solver) -> None:
    levels = levels_of(prediction)
    network = exact_network(levels, prediction)
    observed = observed_order(lambda steps: unipc(log_snr_grid(steps, prediction), solver=solver), network, levels)
    assert observed == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_corrector_makes_unipc_more_exact_than_its_predictor(prediction: Prediction) -> None:
    levels = levels_of(prediction)
    network = exact_network(levels, prediction)
    for steps in (64, 128):
        grid = log_snr_grid(steps, prediction)
        assert end_error(unipc(grid), network, levels) < 0.5 * end_error(dpmpp_2m(grid), network, levels)


def test_unipc_of_order_1_is_corrected_to_order_2() -> None:
    network = exact_network(flow_levels, "velocity")
    observed = observed_order(lambda steps: unipc(log_snr_grid(steps, "velocity"), order=1), network, flow_levels)
    assert observed == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("prediction", ["noise", "data", "v"])
def test_heun_has_order_2_on_a_variance_preserving_schedule(prediction: Prediction) -> None:
    network = exact_network(cosine_levels, prediction)
    observed = observed_order(lambda steps: heun(log_snr_grid(steps, prediction)), network, cosine_levels)
    assert observed == pytest.approx(2, abs=0.2)


def test_dpmpp_2m_with_the_weighting_of_heun_has_order_2() -> None:
    network = exact_network(cosine_levels, "noise")
    observed = observed_order(lambda steps: dpmpp_2m(log_snr_grid(steps, "noise"), solver="heun"), network, cosine_levels)
    assert observed == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("sampler", [euler, heun, ddim, dpmpp_2m, unipc])
def test_what_a_network_predicts_makes_no_difference(sampler: Callable[[Grid], SamplerTable]) -> None:
    """Exact networks of every prediction say the same, so a sampler must end at the same place."""
    grid = log_snr_grid(12, "noise")
    ends = []
    for prediction in ("noise", "data", "v"):
        same = Grid(grid.alphas, grid.sigmas, grid.times, prediction)
        ends.append(run(sampler(same), exact_network(cosine_levels, prediction), 1.1))
    assert ends[1:] == pytest.approx(ends[:1] * 2, abs=1e-9)
    flow = flow_grid(12, 2.0)
    both = [Grid(flow.alphas, flow.sigmas, flow.times, prediction) for prediction in ("velocity", "data")]
    ends = [run(sampler(each), exact_network(flow_levels, each.prediction), 1.1) for each in both]
    assert ends[0] == pytest.approx(ends[1], abs=1e-9)


@pytest.mark.parametrize("sampler", [ddpm, lambda grid: ddpm(grid, "large"), lambda grid: ddim(grid, 0.5)])
def test_the_moments_of_ancestral_samplers_converge_to_those_of_the_data(sampler: Callable[[Grid], SamplerTable]) -> None:
    network = exact_network(flow_levels, "velocity")
    errors = []
    for steps in (100, 400):
        mean, variance = moments(sampler(flow_grid(steps)), network, 0.0, 1.0)
        errors.append(abs(mean - MEAN) + abs(variance - DEVIATION**2))
    assert errors[1] < 0.35 * errors[0] < 0.05


def stepwise(table: SamplerTable, network: Callable[[float, float, float], float], x: float, eps: list[float]) -> float:
    """A table with its noise, in float64."""
    h1 = h2 = 0.0
    for row in range(len(table)):
        a, b, c1, c2, d, p, q = table.coefficients(row)
        f = network(x, table.t[row], table.s[row])
        x, h1, h2 = a * x + b * f + c1 * h1 + c2 * h2 + d * eps[row], p * x + q * f, h1
    return x


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("churn", [0.0, 3.0, 100.0])
def test_churn_is_algorithm_2_of_edm(churn: float, second_order: bool) -> None:
    """arXiv 2206.00364, algorithm 2: raise the noise, evaluate there, Euler to the next level, and correct the slope."""
    noise = NoiseProcess(times=SigmaTimes(sigma_max=40.0), prediction="data")
    steps, low, high, scale = 9, 0.05, 30.0, 1.003
    grid = noise.grid(steps)
    denoise = exact_network(exploding_levels, "data")
    sampler = heun if second_order else euler
    table = sampler(grid, raised_nodes(noise, grid, churn, low, high), scale)
    generator = np.random.default_rng(3)
    fresh = generator.standard_normal(steps)
    x = expected = 40.0 * float(generator.standard_normal())  # sigma_max is above the range of churn
    for i, (t, following) in enumerate(pairwise(grid.sigmas)):
        gamma = min(churn / steps, math.sqrt(2.0) - 1.0) if low <= t <= high else 0.0
        raised = t * (1.0 + gamma)
        expected += math.sqrt(raised**2 - t**2) * scale * fresh[i]
        slope = (expected - denoise(expected, raised, 0.0)) / raised
        moved = expected + (following - raised) * slope
        if second_order and following > 0.0:
            moved = expected + (following - raised) * 0.5 * (slope + (moved - denoise(moved, following, 0.0)) / following)
        expected = moved
    # The noise of a step belongs to the row before it: the last of the step before.
    rows = 2 if second_order else 1
    eps = [0.0] * len(table)
    for i in range(1, steps):
        eps[rows * i - 1] = float(fresh[i])
    assert (churn > 0.0) == any(table.d)
    assert stepwise(table, denoise, x, eps) == pytest.approx(expected, abs=1e-9)


def test_churn_of_the_first_step_is_part_of_the_first_state() -> None:
    noise = NoiseProcess(times=SigmaTimes(), prediction="data")
    grid = noise.grid(5)
    table = euler(grid, raised_nodes(noise, grid, 1.0, 0.0, 1e5))
    assert table.start == pytest.approx((0.0, 80.0)) and table.t[0] == pytest.approx(80.0), "nothing is above sigma_max"
    part = noise.grid(5, strength=0.6)
    table = euler(part, raised_nodes(noise, part, 0.6, 0.0, 1e5))
    assert table.start == pytest.approx((1.0, 1.2 * part.sigmas[0])) and table.t[0] == pytest.approx(1.2 * part.sigmas[0])
