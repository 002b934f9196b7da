"""Samplers by theory: convergence, exactness and moments for Gaussian data, where every network is known exactly.

Data N(MEAN, DEVIATION^2) under x = alpha x0 + sigma eps have the marginal N(alpha MEAN, S^2) with
S^2 = alpha^2 DEVIATION^2 + sigma^2, the probability-flow ODE keeps (x - alpha MEAN) / S constant, and every prediction
is the conditional expectation given x, which is linear in x.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from service.procedures.consistency import consistency
from service.procedures.ddim import ddim
from service.procedures.dpmpp_2m import dpmpp_2m
from service.procedures.euler import euler
from service.procedures.flow_map import flow_map
from service.procedures.heun import heun
from service.procedures.noise import NoiseProcess, SigmaTimes
from service.procedures.tables import Grid, Prediction, SamplerTable, flow_grid

MEAN, DEVIATION, START = 0.7, 0.4, 1.3
Levels = Callable[[float], tuple[float, float]]
Network = Callable[[float, float, float], float]


def flow_levels(t: float) -> tuple[float, float]:
    return 1.0 - t, t


def cosine_levels(t: float) -> tuple[float, float]:
    return math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)


def exploding_levels(t: float) -> tuple[float, float]:
    return 1.0, t


def deviation(alpha: float, sigma: float) -> float:
    return math.hypot(alpha * DEVIATION, sigma)


def exact_network(levels: Levels, prediction: Prediction) -> Network:
    """f(x, t, s) = E[what `prediction` names | x]; s is not looked at."""

    def network(x: float, t: float, s: float) -> float:
        alpha, sigma = levels(t)
        residual = (x - alpha * MEAN) / deviation(alpha, sigma) ** 2
        data, noise = MEAN + alpha * DEVIATION**2 * residual, sigma * residual
        return {"velocity": noise - data, "noise": noise, "data": data, "v": alpha * noise - sigma * data}[prediction]

    return network


def exact_map(x: float, levels: Levels, t: float, s: float) -> float:
    """Where the probability-flow ODE takes x from t to s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(t), levels(s)
    return alpha_s * MEAN + deviation(alpha_s, sigma_s) / deviation(alpha_t, sigma_t) * (x - alpha_t * MEAN)


def average_velocity(x: float, t: float, s: float) -> float:
    """The exact flow map of rectified flow, in MeanFlow's parameterisation."""
    return (x - exact_map(x, flow_levels, t, s)) / (t - s)


def cosine_grid(steps: int, prediction: Prediction) -> Grid:
    """Variance preserving, from just short of pure noise."""
    times = tuple(0.98 * (steps - i) / steps for i in range(steps + 1))
    alphas, sigmas = zip(*map(cosine_levels, times), strict=True)
    return Grid(alphas, sigmas, times, prediction)


def log_snr_grid(steps: int, prediction: Prediction) -> Grid:
    """Uniform in lambda = log(alpha / sigma) from -2 to 12, then data; flow for a velocity, else cosine."""
    ratios = [math.exp(2.0 - 14.0 * i / (steps - 1)) for i in range(steps)]  # sigma / alpha
    if prediction == "velocity":
        return flow_grid(steps, times=[*(ratio / (1.0 + ratio) for ratio in ratios), 0.0])
    times = (*(2.0 / math.pi * math.atan(ratio) for ratio in ratios), 0.0)
    alphas, sigmas = zip(*map(cosine_levels, times), strict=True)
    return Grid(alphas, sigmas, times, prediction)


def run(table: SamplerTable, network: Network, x: float) -> float:
    """A deterministic table from x to its end, in float64."""
    h1 = h2 = 0.0
    for row in range(len(table)):
        a, b, c1, c2, d, p, q = table.coefficients(row)
        assert d == 0.0
        f = network(x, table.t[row], table.s[row])
        x, h1, h2 = a * x + b * f + c1 * h1 + c2 * h2, p * x + q * f, h1
    return x


def moments(table: SamplerTable, network: Network, mean: float, variance: float) -> tuple[float, float]:
    """Mean and variance at the end of a table without history, exactly, for a network that is linear in x."""
    for row in range(len(table)):
        a, b, c1, c2, d, _, _ = table.coefficients(row)
        assert c1 == c2 == 0.0
        offset = network(0.0, table.t[row], table.s[row])
        slope = network(1.0, table.t[row], table.s[row]) - offset
        mean, variance = (a + b * slope) * mean + b * offset, (a + b * slope) ** 2 * variance + d * d
    return mean, variance


def end_error(table: SamplerTable, network: Network, levels: Levels) -> float:
    return abs(run(table, network, START) - exact_map(START, levels, table.t[0], 0.0))


def observed_order(table_of: Callable[[int], SamplerTable], network: Network, levels: Levels) -> float:
    """Slope of log error against log step between 64 and 256 steps."""
    coarse, fine = (end_error(table_of(steps), network, levels) for steps in (64, 256))
    return math.log(coarse / fine, 4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (ddim, 1), (heun, 2)])
def test_order_on_rectified_flow(sampler: Callable[[Grid], SamplerTable], order: int, shift: float) -> None:
    network = exact_network(flow_levels, "velocity")
    observed = observed_order(lambda steps: sampler(flow_grid(steps, shift)), network, flow_levels)
    assert observed == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("prediction", ["noise", "data", "v"])
def test_ddim_has_order_1_on_a_variance_preserving_schedule(prediction: Prediction) -> None:
    network = exact_network(cosine_levels, prediction)
    observed = observed_order(lambda steps: ddim(cosine_grid(steps, prediction)), network, cosine_levels)
    assert observed == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("prediction", ["velocity", "noise", "data", "v"])
def test_dpmpp_2m_has_order_2_in_log_snr(prediction: Prediction) -> None:
    levels = flow_levels if prediction == "velocity" else cosine_levels
    network = exact_network(levels, prediction)
    observed = observed_order(lambda steps: dpmpp_2m(log_snr_grid(steps, prediction)), network, levels)
    assert observed == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpmpp_2m_has_order_2_up_to_a_logarithm_in_uniform_times(shift: float) -> None:
    network = exact_network(flow_levels, "velocity")
    coarse, fine = (end_error(dpmpp_2m(flow_grid(steps, shift)), network, flow_levels) / math.log(steps) for steps in (512, 2048))
    assert math.log(coarse / fine, 4) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("prediction", ["noise", "data"])
def test_heun_has_order_2_on_the_schedule_of_edm(prediction: Prediction) -> None:
    network = exact_network(exploding_levels, prediction)

    def table_of(steps: int) -> SamplerTable:
        return heun(NoiseProcess(times=SigmaTimes(sigma_min=1e-4, sigma_max=20.0), prediction=prediction).grid(steps))

    assert observed_order(table_of, network, exploding_levels) == pytest.approx(2, abs=0.2)


def test_ddim_without_noise_is_euler_on_rectified_flow() -> None:
    left, right = ddim(flow_grid(9, 2.0)), euler(flow_grid(9, 2.0))
    for row in range(9):
        assert left.coefficients(row) == pytest.approx(right.coefficients(row), abs=1e-15)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_an_exact_flow_map_is_exact_in_any_number_of_jumps(steps: int, shift: float) -> None:
    end = run(flow_map(flow_grid(steps, shift)), average_velocity, START)
    assert end == pytest.approx(exact_map(START, flow_levels, 1.0, 0.0), abs=1e-12)


def test_a_velocity_in_the_place_of_a_flow_map_is_not_exact() -> None:
    end = run(flow_map(flow_grid(1)), exact_network(flow_levels, "velocity"), START)
    assert abs(end - exact_map(START, flow_levels, 1.0, 0.0)) > 0.1


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_consistency_with_the_exact_map_has_the_moments_of_the_data(steps: int) -> None:
    mean, variance = moments(consistency(flow_grid(steps)), average_velocity, 0.0, 1.0)
    assert (mean, variance) == pytest.approx((MEAN, DEVIATION**2), abs=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_moments_of_ddim_converge_to_those_of_the_data(eta: float) -> None:
    network = exact_network(flow_levels, "velocity")
    errors = []
    for steps in (100, 400):
        mean, variance = moments(ddim(flow_grid(steps), eta), network, 0.0, 1.0)
        errors.append(abs(mean - MEAN) + abs(variance - DEVIATION**2))
    assert errors[1] < 0.35 * errors[0] < 0.02


@pytest.mark.parametrize("prediction", ["noise", "data", "v"])
def test_ancestral_ddim_of_exact_data_is_exact_for_a_single_datum(prediction: Prediction) -> None:
    """With all data at one point the posterior is known, so eta = 1 must follow the marginals at any step size."""
    grid = cosine_grid(3, prediction)

    def network(x: float, t: float, s: float) -> float:
        alpha, sigma = cosine_levels(t)
        noise = (x - alpha * MEAN) / sigma
        return {"noise": noise, "data": MEAN, "v": alpha * noise - sigma * MEAN}[prediction]

    mean, variance = moments(ddim(grid, 1.0), network, grid.alphas[0] * MEAN, grid.sigmas[0] ** 2)
    assert (mean, variance) == pytest.approx((MEAN, 0.0), abs=1e-12)
