"""Noise schedules, and what a process refuses: lists of times, shifts, and scheduler configurations that it does not know."""

from __future__ import annotations

from typing import Any

import pytest

from service.procedures.noise import AngleTimes, FlowTimes, NoiseProcess, SigmaTimes, TrainingTimes, from_scheduler_config
from service.procedures.parameters import EulerParameters
from service.procedures.schedules import beta_probability, beta_quantile, evenly, exponential, karras

PROCESSES = {
    "flow": NoiseProcess(),
    "vp": NoiseProcess(times=TrainingTimes(), prediction="noise"),
    "ve": NoiseProcess(times=SigmaTimes(), prediction="data"),
    "trigflow": NoiseProcess(times=AngleTimes(), prediction="v"),
}


def test_every_schedule_leads_from_its_first_to_its_last_level() -> None:
    for spaced in (evenly, karras, exponential):
        levels = spaced(80.0, 0.002, 9)
        assert (levels[0], levels[-1]) == pytest.approx((80.0, 0.002))
        assert levels == sorted(levels, reverse=True)
        assert spaced(80.0, 0.002, 1) == pytest.approx([80.0])


def test_quantiles_of_beta_are_where_the_density_has_that_much_below_it() -> None:
    steps = 400_000
    density = [((i + 0.5) / steps * (1.0 - (i + 0.5) / steps)) ** (0.6 - 1.0) for i in range(steps)]
    below, total = 0.0, sum(density)
    for i in range(steps // 4):
        below += density[i]
    assert beta_probability(0.25, 0.6, 0.6) == pytest.approx(below / total, abs=2e-4)
    for probability in (0.001, 0.3, 0.5, 0.77, 0.999):
        quantile = beta_quantile(probability, 0.6, 0.6)
        assert beta_probability(quantile, 0.6, 0.6) == pytest.approx(probability, abs=1e-12)
        assert beta_quantile(1.0 - probability, 0.6, 0.6) == pytest.approx(1.0 - quantile, abs=1e-9)


@pytest.mark.parametrize("process", ["flow", "vp", "ve"])
@pytest.mark.parametrize("schedule", ["default", "linear", "cosine", "karras", "exponential", "beta"])
@pytest.mark.parametrize("steps", [1, 2, 13])
def test_every_process_has_every_schedule(process: str, schedule: Any, steps: int) -> None:
    table = EulerParameters(steps=steps, schedule=schedule).table(PROCESSES[process])
    assert len(table) == steps
    plain = EulerParameters(steps=steps).table(PROCESSES[process])
    assert table.level[0] == pytest.approx(plain.level[0], abs=1e-6)


@pytest.mark.parametrize("process", ["vp", "ve", "trigflow"])
def test_a_shift_is_for_flows(process: str) -> None:
    with pytest.raises(ValueError, match="`shift` moves the times of a flow"):
        EulerParameters(shift=2.0).table(PROCESSES[process])


@pytest.mark.parametrize(
    ("process", "timesteps", "problem"),
    [
        ("flow", [1.5, 0.2], "in \\(0, 1\\]"),
        ("flow", [0.4, 0.7], "must fall"),
        ("flow", [0.4, 0.4], "must fall"),
        ("vp", [1000.0, 3.0], "whole numbers from 999"),
        ("vp", [900.5, 3.0], "whole numbers from 999"),
        ("ve", [3.0, -1.0], "sigma in \\(0, 80\\]"),
        ("trigflow", [2.0, 1.0], "angles"),
    ],
)
def test_a_list_of_times_that_a_process_does_not_have_is_refused(process: str, timesteps: list[float], problem: str) -> None:
    with pytest.raises(ValueError, match=f"`timesteps`.*{problem}"):
        PROCESSES[process].grid(2, timesteps=timesteps)


def test_a_list_of_times_goes_with_no_other_way_to_choose_them() -> None:
    for other in ({"shift": 2.0}, {"schedule": "karras"}):
        with pytest.raises(ValueError, match="`timesteps` are taken as they are"):
            EulerParameters(timesteps=(0.9, 0.3), **other).table()


def test_there_are_no_more_steps_than_timesteps_were_trained() -> None:
    with pytest.raises(ValueError, match="`steps` must be at most 1000"):
        PROCESSES["vp"].grid(1001)
    few = NoiseProcess(times=TrainingTimes(spacing="distilled", distilled=50), prediction="noise")
    with pytest.raises(ValueError, match="`steps` must be at most 50"):
        few.grid(51)


def test_only_a_flow_runs_evenly_from_1_to_0() -> None:
    uneven = NoiseProcess(times=FlowTimes(first=0.9, end=0.1, end_included=True, unit=1000.0))
    assert uneven.evenly().grid(4).times == pytest.approx((1000.0, 750.0, 500.0, 250.0, 0.0))
    with pytest.raises(ValueError, match="of a flow"):
        PROCESSES["vp"].evenly()


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "scheduler None is not known; known: .*FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "DEISMultistepScheduler"}, "scheduler 'DEISMultistepScheduler' is not known"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas True is not supported"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": "much"}, "shift must be a number, not 'much'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True}, "stochastic_sampling"),
        ({"_class_name": "DDIMScheduler"}, "clip_sample is not supported"),
        ({"_class_name": "DDIMScheduler", "clip_sample": False, "beta_schedule": "magic"}, "beta_schedule 'magic'.*linear"),
        ({"_class_name": "DDPMScheduler", "clip_sample": False, "variance_type": "learned"}, "variance_type 'learned'"),
        ({"_class_name": "DDPMScheduler", "clip_sample": False, "prediction_type": "flow_prediction"}, "prediction_type"),
        ({"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}, "interpolation_type"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "odd"}, "timestep_spacing 'odd' is not known"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order 3 is not supported"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "algorithm_type 'dpmsolver'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}, "use_lu_lambdas"),
        ({"_class_name": "DPMSolverMultistepScheduler", "thresholding": True}, "thresholding True"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 3}, "solver_order 3"),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": False}, "predict_x0 False"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "use_karras_sigmas": True}, "use_flow_sigmas"),
        ({"_class_name": "SCMScheduler", "prediction_type": "epsilon"}, "trigflow"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "clip_denoised"),
    ],
)
def test_what_no_table_does_is_refused_by_name(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        from_scheduler_config(config)


def test_keys_that_belong_to_other_schedulers_are_not_looked_at() -> None:
    config = {"_class_name": "EulerDiscreteScheduler", "clip_sample": True, "skip_prk_steps": True, "set_alpha_to_one": False}
    noise, procedure = from_scheduler_config(config)
    assert procedure == {"name": "euler"} and noise.kind == "vp" and noise.prediction == "noise"


def test_dpmpp_2m_stands_in_for_pndm_on_its_times() -> None:
    config = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1, "beta_schedule": "scaled_linear"}
    noise, procedure = from_scheduler_config(config)
    assert procedure == {"name": "dpmpp_2m"}
    assert noise.grid(50).times == (*(float(20 * i + 1) for i in range(49, -1, -1)), 0.0)
    assert noise.grid(50).sigmas[-1] > 0.0


def test_a_quantile_takes_few_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def counted(x: float, a: float, b: float) -> float:
        asked.append(x)
        return beta_probability(x, a, b)

    monkeypatch.setattr("service.procedures.schedules.beta_probability", counted)
    for i in range(1, 1000):
        beta_quantile(i / 1000.1, 0.6, 0.6)
    assert len(asked) < 10 * 999
