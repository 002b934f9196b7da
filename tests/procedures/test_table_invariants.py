"""What every sampler table promises, for every kind of noise: by a network that knows the one datum there is.

With all data at one point m, the exact network's estimates of data and noise are those that made x, whatever the step. Then a
sampler's state is alpha m + sigma times a standard normal, with alpha and sigma as the table says, and its estimate of the data
is m. States are vectors here: how much of m and of every independent noise is in x. So nothing is random, and history counts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from service.procedures.noise import AngleTimes, Betas, FlowTimes, NoiseProcess, SigmaTimes, TrainingTimes
from service.procedures.parameters import (
    ConsistencyParameters,
    DdimParameters,
    DdpmParameters,
    Dpmpp2mParameters,
    EulerAncestralParameters,
    EulerParameters,
    FlowMapParameters,
    HeunParameters,
    RestartParameters,
    SamplerParameters,
    UnipcParameters,
)
from service.procedures.tables import Prediction, SamplerTable

Vector = np.ndarray

LATENT = Betas(schedule="scaled_linear", first=0.00085, last=0.012)
PROCESSES = {
    "flow": NoiseProcess(),
    "flow of data": NoiseProcess(times=FlowTimes(unit=1000.0, shift=3.0), prediction="data"),
    "noise": NoiseProcess(times=TrainingTimes(betas=LATENT), prediction="noise"),
    "v": NoiseProcess(times=TrainingTimes(betas=LATENT, spacing="trailing"), prediction="v"),
    "continuous": NoiseProcess(times=TrainingTimes(betas=LATENT, spacing="linspace", whole=False), prediction="data"),
    "trigflow": NoiseProcess(times=AngleTimes(), prediction="v"),
    "exploding": NoiseProcess(times=SigmaTimes(), prediction="data"),
    "edm": NoiseProcess(times=SigmaTimes(told="log"), prediction="edm"),
}
SAMPLERS: list[SamplerParameters] = [
    EulerParameters(steps=7, strength=0.8),
    EulerParameters(steps=7, strength=0.8, churn=2.0, churn_min=0.1, churn_max=30.0),
    HeunParameters(steps=7, strength=0.8),
    HeunParameters(steps=7, strength=0.8, churn=2.0),
    DdimParameters(steps=7, strength=0.8),
    DdimParameters(steps=7, strength=0.8, eta=0.6),
    DdpmParameters(steps=7, strength=0.8),
    EulerAncestralParameters(steps=7, strength=0.8),
    Dpmpp2mParameters(steps=7, strength=0.8),
    Dpmpp2mParameters(steps=18, strength=0.8, eta=1.0, solver="heun"),
    Dpmpp2mParameters(steps=7, strength=0.8, eta=0.5),
    UnipcParameters(steps=7, strength=0.8),
    UnipcParameters(steps=7, strength=0.8, solver="bh1"),
    FlowMapParameters(steps=7, strength=0.8),
    FlowMapParameters(steps=7, strength=0.8, gamma=0.7),
    ConsistencyParameters(steps=7, strength=0.8),
    RestartParameters(steps=7, strength=0.8, restarts=2, jumps=2),
]


def output(prediction: Prediction, x: Vector, alpha: float, sigma: float) -> Vector:
    """What a network of this prediction says of x, if it knows the datum."""
    data = np.zeros_like(x)
    data[0] = 1.0
    noise = (x - alpha * data) / sigma
    match prediction:
        case "velocity":
            return noise - data
        case "noise":
            return noise
        case "data":
            return data
        case "v":
            return alpha * noise - sigma * data
        case "edm":
            square = sigma**2 + 0.25
            return (data - 0.25 / square * x) / (0.5 * sigma / math.sqrt(square))
        case other:
            raise AssertionError(other)


def walk(table: SamplerTable, prediction: Prediction) -> Vector:
    """The last state; every state and every estimate on the way is held to what the table says about it."""
    x = np.zeros(2 + len(table))
    x[:2] = table.start
    alpha, sigma = table.start
    h1 = h2 = np.zeros_like(x)
    for row in range(len(table)):
        assert table.level[row] == pytest.approx(sigma / (alpha + sigma), abs=1e-9)
        f = output(prediction, x, alpha, sigma)
        estimate = table.x0_x[row] * x + table.x0_f[row] * f
        assert estimate[0] == pytest.approx(1.0, abs=1e-6) and np.abs(estimate[1:]).max() < 1e-6
        eps = np.zeros_like(x)
        eps[2 + row] = 1.0
        a, b, c1, c2, d, p, q = table.coefficients(row)
        x, h1, h2 = a * x + b * f + c1 * h1 + c2 * h2 + d * eps, p * x + q * f, h1
        alpha, sigma = table.alpha[row], table.sigma[row]
        assert x[0] == pytest.approx(alpha, abs=1e-6)
        assert np.linalg.norm(x[1:]) == pytest.approx(sigma, rel=1e-6, abs=1e-6)
    return x


@pytest.mark.parametrize("process", list(PROCESSES))
@pytest.mark.parametrize("parameters", SAMPLERS, ids=lambda p: f"{type(p).__name__}")
def test_states_are_what_the_table_says_they_are(process: str, parameters: SamplerParameters) -> None:
    noise = PROCESSES[process]
    table = parameters.table(noise)
    assert table.start[0] > 0.0 and table.start[1] > 0.0
    end = walk(table, noise.prediction)
    assert end[0] == pytest.approx(1.0, abs=1e-6) and np.abs(end[1:]).max() < 1e-6


@pytest.mark.parametrize("process", list(PROCESSES))
@pytest.mark.parametrize("parameters", [EulerParameters, DdimParameters, Dpmpp2mParameters, UnipcParameters, FlowMapParameters])
def test_all_begin_at_noise_unless_a_picture_is_given(process: str, parameters: type[SamplerParameters]) -> None:
    noise = PROCESSES[process]
    whole, part = parameters(steps=8).table(noise), parameters(steps=8, strength=0.5).table(noise)
    assert whole.start[0] == 0.0 and whole.start[1] >= 0.99 * noise.grid(8).sigmas[0]
    assert (len(whole), len(part)) == (8, 4)
    assert part.start == (whole.alpha[3], whole.sigma[3])
    assert part.t == whole.t[4:]


def test_the_share_of_steps_is_rounded_as_the_pipelines_of_the_field_round_it() -> None:
    """Up for flows (FluxImg2ImgPipeline.get_timesteps), down for diffusions (StableDiffusionXLImg2ImgPipeline's)."""
    for strength, up, down in ((0.55, 6, 5), (0.3, 3, 3), (0.01, 1, 1), (0.85, 9, 8)):
        assert len(EulerParameters(steps=10, strength=strength).table(PROCESSES["flow"])) == up
        assert len(EulerParameters(steps=10, strength=strength).table(PROCESSES["noise"])) == down


@pytest.mark.parametrize("process", list(PROCESSES))
def test_below_a_strength_of_1_the_first_state_has_a_given_picture_in_it(process: str) -> None:
    noise = PROCESSES[process]
    for steps in (2, 3, 4, 10):
        for strength in (0.999, 0.8, 0.6, 0.3):
            assert noise.grid(steps, strength=strength).start[0] > 0.0
    if noise.grid(1).start[0] == noise.grid(1).alphas[0] == 0.0:
        with pytest.raises(ValueError, match="`strength` leaves nothing of a given picture"):
            noise.grid(1, strength=0.5)


@pytest.mark.parametrize("parameters", SAMPLERS, ids=lambda p: f"{type(p).__name__}")
def test_a_level_is_a_share_of_noise(parameters: SamplerParameters) -> None:
    levels: Any = parameters.table(PROCESSES["v"]).level
    assert all(0.0 < level <= 1.0 for level in levels)
    if not isinstance(parameters, HeunParameters | RestartParameters):
        assert list(levels) == sorted(levels, reverse=True)
