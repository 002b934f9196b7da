"""Samplers on rectified flow against the schedulers of diffusers, from their configurations, step by step."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import msgspec
import pytest

from service.procedures.noise import FlowTimes, NoiseProcess, ResolutionShift
from service.procedures.parameters import ConsistencyParameters, EulerParameters
from tests.procedures.scheduler_agreement import agree, assert_same_steps, table_of

FLUX_2 = [(256, 4, 1.96556716), (1024, 28, 1.85917658), (4096, 50, 2.02335116), (8192, 4, 1.8433265)]
"""Tokens, steps, and the mu that `compute_empirical_mu` of diffusers' Flux2Pipeline (0.42) gives for them."""
SPACINGS: list[dict[str, Any]] = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"shift_terminal": 0.1},
]


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_euler(steps: int, shift: float) -> None:
    agree(diffusers.FlowMatchEulerDiscreteScheduler(shift=shift), steps)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_euler_in_every_spacing(spacing: dict[str, Any]) -> None:
    agree(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **spacing), 6)


@pytest.mark.parametrize("tokens", [64, 256, 1024, 9216])
@pytest.mark.parametrize("form", ["exponential", "linear"])
def test_euler_with_a_shift_that_grows_with_the_picture(form: str, tokens: int) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=form, base_shift=0.4, max_shift=1.2, shift_terminal=0.02
    )
    line = 0.4 + (1.2 - 0.4) * (tokens - 256) / (4096 - 256)
    agree(scheduler, 5, tokens=tokens, mu=line) if line > 0.0 else None


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_euler_with_the_even_sigmas_that_pipelines_ask_for(steps: int) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=[(steps - i) / steps for i in range(steps)], mu=0.9)
    noise, _ = table_of(scheduler, steps)
    table = EulerParameters(steps=steps, shift=math.exp(0.9)).table(noise.evenly())
    assert_same_steps(scheduler, table)


@pytest.mark.parametrize(("tokens", "steps", "mu"), FLUX_2)
def test_the_shift_of_flux_2_is_that_of_its_pipeline(tokens: int, steps: int, mu: float) -> None:
    assert math.log(ResolutionShift(law="flux2").shift(tokens, steps)) == pytest.approx(mu, rel=1e-6)


def test_euler_with_a_list_of_times() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    sigmas = [1.0, 0.9, 0.35, 0.1]
    scheduler.set_timesteps(sigmas=sigmas)
    noise, _ = table_of(scheduler, 4)
    table = EulerParameters(timesteps=tuple(sigmas)).table(noise)
    assert EulerParameters(timesteps=(*sigmas, 0.0)).table(noise) == table
    assert_same_steps(scheduler, table)


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun(steps: int, shift: float) -> None:
    # It takes its slope as (x - (x - sigma f)) / sigma, which at sigma = 1e-3 leaves four digits of float32.
    agree(diffusers.FlowMatchHeunDiscreteScheduler(shift=shift), steps, tolerance=5e-5)


SOLVERS: list[dict[str, Any]] = [{}, {"flow_shift": 3.0}, {"flow_shift": 7.0}]


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20])
@pytest.mark.parametrize("options", SOLVERS)
def test_dpmpp_2m(options: dict[str, Any], steps: int) -> None:
    agree(_dpm_solver(**options), steps)


@pytest.mark.parametrize("options", [{"algorithm_type": "sde-dpmsolver++"}, {"solver_type": "heun"}])
def test_dpmpp_2m_as_an_sde_and_with_the_other_weighting(options: dict[str, Any]) -> None:
    for steps in (5, 20):
        agree(_dpm_solver(flow_shift=3.0, **options), steps)


def _dpm_solver(**options: Any) -> Any:
    return diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, **options)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 20])
@pytest.mark.parametrize("options", [*SOLVERS, {"solver_order": 1}, {"shift_terminal": 0.05, "flow_shift": 1.5}])
def test_unipc(options: dict[str, Any], steps: int) -> None:
    if steps == 1 and "shift_terminal" in options:
        pytest.skip("diffusers stretches 0 / 0")
    agree(diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, **options), steps)


@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_unipc_of_other_predictions(kind: str) -> None:
    """Not v: diffusers takes alpha x - sigma f for the data, which is right where alpha^2 + sigma^2 = 1 alone."""
    agree(diffusers.UniPCMultistepScheduler(prediction_type=kind, use_flow_sigmas=True, flow_shift=2.0), 6)


@pytest.mark.parametrize("steps", [1, 2, 4, 9])
@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_flow_map(steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMapEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    _, table = table_of(scheduler, steps)
    assert table.takes_target
    assert table.s == (*table.t[1:], 0.0)
    assert_same_steps(scheduler, table)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_consistency(steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMatchLCMScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    _, table = table_of(scheduler, steps)
    assert table.takes_target and set(table.s) == {0.0}
    assert_same_steps(scheduler, table)


def test_consistency_is_the_stochastic_sampling_of_a_flow() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    noise = NoiseProcess(times=FlowTimes(unit=1000.0, shift_of_jumps=None))
    assert_same_steps(scheduler, ConsistencyParameters(steps=4).table(noise))


def test_a_process_survives_the_wire() -> None:
    noise, _ = table_of(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 3)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(noise), type=NoiseProcess) == noise
