"""Every sampler table against the scheduler of diffusers, step by step, on the same random network outputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import diffusers
import pytest
import torch
from torch import Tensor

from kernels.sampler_update import sampler_update
from service.procedures.consistency import consistency
from service.procedures.ddim import ddim
from service.procedures.dpmpp_2m import dpmpp_2m
from service.procedures.euler import euler
from service.procedures.flow_map import flow_map
from service.procedures.heun import heun
from service.procedures.tables import Grid, Prediction, SamplerTable, flow_grid, vp_grid

SHAPE = (2, 3, 4, 4)
PREDICTIONS: dict[str, Prediction] = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}


def assert_same_steps(
    table: SamplerTable,
    step: Callable[[int, Tensor, Tensor, Tensor], Tensor],
    *,
    tolerance: float = 1e-5,
    own_noise: Callable[[], Tensor] | None = None,
) -> None:
    """Both sides go from one noise through the table's rows; `step(row, x, f, eps)` is the scheduler's.

    `tolerance` is relative to the largest number that the scheduler's state has held so far, since float32 rounding is.
    `own_noise` draws what the scheduler draws by itself from a generator.
    """
    generator = torch.Generator().manual_seed(5)
    theirs = torch.randn(SHAPE, generator=generator)
    ours, h1, h2 = theirs, torch.zeros(SHAPE), torch.zeros(SHAPE)
    magnitude = theirs.abs().max()
    for row in range(len(table)):
        f, eps = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
        if own_noise is not None:
            eps = own_noise()
        coefficients = torch.tensor([table.coefficients(row)] * SHAPE[0])
        ours, h1, h2 = sampler_update(ours, f, h1, h2, coefficients, eps)
        theirs = step(row, theirs, f, eps)
        magnitude = torch.maximum(magnitude, theirs.abs().max())
        error = ((ours - theirs).abs().max() / magnitude).item()
        assert error < tolerance, f"row {row} of {len(table)}: {error}"


def flow_step(scheduler) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
    """The step of a scheduler that is told its own timesteps and no noise."""
    return lambda row, x, f, eps: scheduler.step(f, scheduler.timesteps[row], x).prev_sample


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_euler(steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[(steps - i) / steps for i in range(steps)])
    table = euler(flow_grid(steps, shift))
    assert 1000.0 * torch.tensor(table.t) == pytest.approx(scheduler.timesteps, abs=1e-3)
    assert_same_steps(table, flow_step(scheduler))


@pytest.mark.parametrize("steps", [2, 3, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun(steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    # The scheduler ends at its smallest training time, then at 0, and shifts twice: its own times are taken as given.
    times = [*(scheduler.timesteps[:1] / 1000).tolist(), *(scheduler.timesteps[1::2] / 1000).tolist(), 0.0]
    table = heun(flow_grid(steps, times=times))
    assert len(table) == len(scheduler.timesteps) == 2 * steps - 1
    assert 1000.0 * torch.tensor(table.t) == pytest.approx(scheduler.timesteps, abs=1e-3)
    # It takes its slope as (x - (x - sigma f)) / sigma, which at sigma = 1e-3 leaves four digits of float32.
    assert_same_steps(table, flow_step(scheduler), tolerance=5e-5)


@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_heun_of_edm(kind: str) -> None:
    scheduler = diffusers.HeunDiscreteScheduler(prediction_type=kind)
    scheduler.set_timesteps(9)
    sigmas = tuple([*scheduler.sigmas[:1].tolist(), *scheduler.sigmas[1:-1:2].tolist(), 0.0])
    table = heun(Grid((1.0,) * len(sigmas), sigmas, sigmas, PREDICTIONS[kind]))
    assert len(table) == len(scheduler.timesteps) == 17

    def step(row: int, x: Tensor, f: Tensor, eps: Tensor) -> Tensor:
        return scheduler.step(f, scheduler.timesteps[row], x).prev_sample

    assert_same_steps(table, step)


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("kind", list(PREDICTIONS))
def test_ddim(kind: str, eta: float, steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type=kind, clip_sample=False, beta_schedule="scaled_linear")
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    table = ddim(vp_grid(scheduler.alphas_cumprod.tolist(), timesteps, PREDICTIONS[kind]), eta)

    def step(row: int, x: Tensor, f: Tensor, eps: Tensor) -> Tensor:
        return scheduler.step(f, timesteps[row], x, eta=eta, variance_noise=eps).prev_sample

    assert_same_steps(table, step)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20])
@pytest.mark.parametrize("kind", list(PREDICTIONS))
def test_dpmpp_2m_on_a_variance_preserving_grid(kind: str, steps: int) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type=kind, timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    grid = vp_grid(scheduler.alphas_cumprod.tolist(), scheduler.timesteps.tolist(), PREDICTIONS[kind])
    assert_same_steps(dpmpp_2m(grid), flow_step(scheduler))


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpmpp_2m_on_a_flow_grid(steps: int, shift: float) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(steps)
    grid = flow_grid(steps, times=scheduler.sigmas.tolist())
    assert_same_steps(dpmpp_2m(grid), flow_step(scheduler))


@pytest.mark.parametrize("steps", [1, 2, 4, 9])
@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_flow_map(steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMapEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    table = flow_map(flow_grid(steps, shift))
    assert table.takes_target
    assert 1000.0 * torch.tensor(table.t) == pytest.approx(scheduler.timesteps, abs=1e-3)

    def step(row: int, x: Tensor, f: Tensor, eps: Tensor) -> Tensor:
        return scheduler.step(f, scheduler.timesteps[row], x, r_timestep=1000.0 * table.s[row]).prev_sample

    assert_same_steps(table, step)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_consistency_of_a_flow(steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMatchLCMScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[(steps - i) / steps for i in range(steps)])
    table = consistency(flow_grid(steps, shift))
    assert table.takes_target and set(table.s) == {0.0}
    drawn, same = (torch.Generator().manual_seed(1) for _ in range(2))

    def step(row: int, x: Tensor, f: Tensor, eps: Tensor) -> Tensor:
        return scheduler.step(f, scheduler.timesteps[row], x, generator=drawn).prev_sample

    assert_same_steps(table, step, own_noise=lambda: torch.randn(SHAPE, generator=same))


def test_consistency_of_trigflow() -> None:
    steps, sigma_data = 4, 0.5
    scheduler = diffusers.SCMScheduler(sigma_data=sigma_data)
    scheduler.set_timesteps(steps, intermediate_timesteps=None)
    times = scheduler.timesteps.tolist()
    # Its largest time, 1.57080, lies a little beyond pi / 2, where alpha would be negative by 4e-6.
    grid = Grid(tuple(max(math.cos(t), 0.0) for t in times), tuple(math.sin(t) for t in times), tuple(times), "v")
    table = consistency(grid, takes_target=False)
    assert not table.takes_target
    drawn, same = (torch.Generator().manual_seed(1) for _ in range(2))

    def step(row: int, x: Tensor, f: Tensor, eps: Tensor) -> Tensor:
        return scheduler.step(f, scheduler.timesteps[row], x, generator=drawn).prev_sample

    assert_same_steps(table, step, own_noise=lambda: sigma_data * torch.randn(SHAPE, generator=same))
