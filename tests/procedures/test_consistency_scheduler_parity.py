"""Few-step samplers against the schedulers of diffusers, from their configurations, step by step."""

from __future__ import annotations

import diffusers
import pytest

from tests.procedures.scheduler_agreement import PREDICTIONS, agree, assert_same_steps, table_of


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_lcm(kind: str, steps: int) -> None:
    agree(diffusers.LCMScheduler(prediction_type=kind), steps)


@pytest.mark.parametrize(
    "options", [{"original_inference_steps": 100}, {"timestep_scaling": 3.0}, {"rescale_betas_zero_snr": True}]
)
def test_lcm_with_every_option(options: dict[str, object]) -> None:
    agree(diffusers.LCMScheduler(prediction_type="v_prediction", **options), 4)


def test_lcm_with_a_list_of_timesteps() -> None:
    scheduler = diffusers.LCMScheduler()
    scheduler.set_timesteps(timesteps=[999, 499, 219])
    _, table = table_of(scheduler, 3, timesteps=(999.0, 499.0, 219.0))
    assert_same_steps(scheduler, table)


@pytest.mark.parametrize(("steps", "between"), [(1, None), (2, 1.3), (4, None)])
def test_scm(steps: int, between: float | None) -> None:
    """diffusers keeps x times the deviation of the data."""
    scheduler = diffusers.SCMScheduler()
    scheduler.set_timesteps(steps, intermediate_timesteps=between)
    _, table = table_of(scheduler, steps)
    assert table.t == pytest.approx(scheduler.timesteps[:-1].tolist())
    assert_same_steps(scheduler, table, scale=0.5)


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_consistency_models(steps: int) -> None:
    agree(diffusers.CMStochasticIterativeScheduler(clip_denoised=False), steps, exploding=True)
