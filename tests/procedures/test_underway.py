"""Samplers that are planned anew on the way: they go on from the state that was reached, and end at the data."""

from __future__ import annotations

import math

import pytest

from service.procedures.noise import Betas, NoiseProcess, SigmaTimes, TrainingTimes
from service.procedures.registry import PROCEDURES
from service.procedures.tables import Prediction, SamplerTable
from service.procedures.underway import Underway

X0, EPS = 0.7, -1.3
NOISES = {
    "flow": NoiseProcess(),
    "vp": NoiseProcess(times=TrainingTimes(betas=Betas()), prediction="noise"),
    "ve": NoiseProcess(times=SigmaTimes(), prediction="data"),
}


def output(prediction: Prediction, x: float, alpha: float, sigma: float) -> float:
    """Of a network that knows the data to be X0, at whatever state."""
    noise = (x - alpha * X0) / sigma
    return {"velocity": noise - X0, "noise": noise, "data": X0}[prediction]


def run(
    table: SamplerTable, prediction: Prediction, x: float, alpha: float, sigma: float, rows: int
) -> tuple[float, float, float]:  # fmt: skip
    h1 = h2 = 0.0
    for i in range(rows):
        a, b, c1, c2, d, p, q = table.coefficients(i)
        assert d == 0.0
        f = output(prediction, x, alpha, sigma)
        x, h2, h1 = a * x + b * f + c1 * h1 + c2 * h2, h1, p * x + q * f
        alpha, sigma = table.alpha[i], table.sigma[i]
    return x, alpha, sigma


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m", "unipc", "flow_map"])
@pytest.mark.parametrize("begun,left", [(1, 1), (3, 2), (5, 7)])
def test_the_rest_of_the_way_leads_from_the_state_to_the_data(kind: str, sampler: str, begun: int, left: int) -> None:
    noise, parameters = NOISES[kind], PROCEDURES[sampler].parameters
    first = parameters(steps=8).table(noise)
    ratio = first.level[0] / (1.0 - first.level[0]) if kind != "flow" else math.inf
    alpha, sigma = {"flow": (0.0, 1.0), "ve": (1.0, ratio), "vp": (1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio))}[kind]
    x, alpha, sigma = run(first, noise.prediction, alpha * X0 + sigma * EPS, alpha, sigma, begun)
    rest = parameters(steps=left).table(Underway.of(noise, alpha, sigma))
    assert len(rest) == left and rest.start == (alpha, sigma)
    assert rest.level[0] == pytest.approx(sigma / (alpha + sigma))
    x, alpha, sigma = run(rest, noise.prediction, x, alpha, sigma, left)
    assert abs(x - alpha * X0) <= 3.0 * sigma + 1e-6 and sigma < 0.05


def test_what_was_said_of_the_whole_way_says_nothing_of_the_rest() -> None:
    whole = PROCEDURES["euler"].parameters(steps=4, schedule="karras", strength=0.5)
    rest = whole.table(Underway.of(NoiseProcess(), 0.4, 0.6))
    assert rest.t == pytest.approx((0.6, 0.45, 0.3, 0.15))
