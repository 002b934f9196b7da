"""Samplers on variance-preserving and exploding noise against the schedulers of diffusers, from their configurations."""

from __future__ import annotations

from itertools import product
from typing import Any

import diffusers
import pytest

from tests.procedures.scheduler_agreement import PREDICTIONS, agree, assert_same_steps, table_of

BETAS: list[dict[str, Any]] = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
]
SPACINGS: list[dict[str, Any]] = [
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
]
SIGMAS: list[dict[str, Any]] = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
]


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_ddim(kind: str, eta: float, steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type=kind, clip_sample=False, beta_schedule="scaled_linear")
    scheduler.set_timesteps(steps)
    _, table = table_of(scheduler, steps, eta=eta)
    assert_same_steps(scheduler, table, eta=eta)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("spacing", SPACINGS[:2])
@pytest.mark.parametrize("final", [True, False])
def test_ddim_on_every_schedule(betas: dict[str, Any], spacing: dict[str, Any], final: bool) -> None:
    """Not linspace: diffusers then steps to t - T / N, which is not where it is evaluated next."""
    agree(diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=final, **betas, **spacing), 8)


@pytest.mark.parametrize("eta", [0.0, 0.9])
def test_ddim_from_pure_noise(eta: float) -> None:
    scheduler = diffusers.DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(10)
    _, table = table_of(scheduler, 10, eta=eta)
    assert table.level[0] == 1.0
    assert_same_steps(scheduler, table, eta=eta)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("spacing", [{"timestep_spacing": "leading"}, *SPACINGS[1:]])
def test_ddpm(kind: str, variance: str, spacing: dict[str, Any]) -> None:
    """Of the large variance, not trailing: diffusers then adds noise in the step to the data too."""
    if variance == "fixed_large" and spacing == SPACINGS[1]:
        return
    for steps in (4, 9):
        agree(diffusers.DDPMScheduler(prediction_type=kind, variance_type=variance, clip_sample=False, **spacing), steps)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sigmas", SIGMAS)
def test_euler(kind: str, spacing: dict[str, Any], sigmas: dict[str, Any]) -> None:
    agree(diffusers.EulerDiscreteScheduler(prediction_type=kind, **spacing, **sigmas), 6, exploding=True)


@pytest.mark.parametrize("betas", BETAS[:2])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_euler_on_every_schedule(betas: dict[str, Any], final: str, zero_snr: bool) -> None:
    kind = "v_prediction" if zero_snr else "epsilon"
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type=kind, final_sigmas_type=final, rescale_betas_zero_snr=zero_snr, timestep_spacing="trailing", **betas
    )
    # From sigma = 4096 its states lose four digits in one step: they are differences of numbers that large.
    agree(scheduler, 7, exploding=True, tolerance=5e-5 if zero_snr else 1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [2, 9])
def test_euler_ancestral(kind: str, spacing: dict[str, Any], steps: int) -> None:
    agree(diffusers.EulerAncestralDiscreteScheduler(prediction_type=kind, **spacing, **BETAS[1]), steps, exploding=True)


def test_euler_ancestral_in_one_step() -> None:
    agree(diffusers.EulerAncestralDiscreteScheduler(**SPACINGS[1], **BETAS[1]), 1, exploding=True)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sigmas", SIGMAS)
def test_heun(kind: str, spacing: dict[str, Any], sigmas: dict[str, Any]) -> None:
    agree(diffusers.HeunDiscreteScheduler(prediction_type=kind, **spacing, **sigmas), 5, exploding=True)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sigmas", SIGMAS)
def test_dpmpp_2m(kind: str, spacing: dict[str, Any], sigmas: dict[str, Any]) -> None:
    for steps in (1, 2, 10):
        agree(diffusers.DPMSolverMultistepScheduler(prediction_type=kind, **spacing, **sigmas), steps)


@pytest.mark.parametrize(
    "options",
    [
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        {"solver_type": "heun"},
        {"final_sigmas_type": "sigma_min"},
        {"euler_at_final": True},
        {"lambda_min_clipped": -5.1, **BETAS[2]},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        BETAS[1],
    ],
)
def test_dpmpp_2m_with_every_option(options: dict[str, Any]) -> None:
    for steps in (3, 17):
        agree(diffusers.DPMSolverMultistepScheduler(**options), steps)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sigmas", SIGMAS)
def test_unipc(kind: str, spacing: dict[str, Any], sigmas: dict[str, Any]) -> None:
    for steps in (1, 2, 3, 10):
        agree(diffusers.UniPCMultistepScheduler(prediction_type=kind, **spacing, **sigmas), steps)


@pytest.mark.parametrize(
    "options",
    [
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min"},
        {"solver_order": 1},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        BETAS[1],
    ],
)
def test_unipc_with_every_option(options: dict[str, Any]) -> None:
    for steps in (3, 17):
        agree(diffusers.UniPCMultistepScheduler(**options), steps)


@pytest.mark.parametrize(("kind", "schedule"), product(["epsilon", "v_prediction"], ["karras", "exponential"]))
def test_euler_of_edm(kind: str, schedule: str) -> None:
    agree(diffusers.EDMEulerScheduler(prediction_type=kind, sigma_schedule=schedule), 7, exploding=True)


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_dpmpp_2m_of_edm(algorithm: str) -> None:
    agree(diffusers.EDMDPMSolverMultistepScheduler(algorithm_type=algorithm), 7)
