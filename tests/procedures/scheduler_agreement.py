"""Holds a sampler table against a scheduler of diffusers, step by step, on the same random network outputs."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.sampler_update import sampler_update
from service.procedures.noise import NoiseProcess, from_scheduler_config
from service.procedures.parameters import SamplerParameters
from service.procedures.registry import PROCEDURES
from service.procedures.tables import SamplerTable

SHAPE = (2, 3, 4, 4)
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def table_of(scheduler: Any, steps: int, tokens: int = 0, **parameters: Any) -> tuple[NoiseProcess, SamplerTable]:
    """The noise process and the default sampler of a scheduler's configuration, as a table."""
    noise, procedure = from_scheduler_config(dict(scheduler.config) | {"_class_name": type(scheduler).__name__})
    name = procedure.pop("name")
    if "timesteps" not in parameters:
        parameters["steps"] = steps
    typed = PROCEDURES[name].parameters(**(procedure | parameters))
    assert isinstance(typed, SamplerParameters)
    return noise, typed.table(noise, tokens)


def assert_same_steps(
    scheduler: Any,
    table: SamplerTable,
    *,
    tolerance: float = 1e-5,
    exploding: bool = False,
    scale: float = 1.0,
    times: bool = True,
    **options: Any,
) -> None:
    """Both sides go from one noise through the table's rows, told the same times, and stay together.

    tolerance: relative to the largest number that the scheduler's state has held so far, since float32 rounding is.
    exploding: the scheduler keeps x / alpha. scale: it keeps states, outputs and noise multiplied by this.
    """
    generator = torch.Generator().manual_seed(5)
    timesteps = scheduler.timesteps[: len(table)]
    assert len(timesteps) == len(table)
    if times:
        assert list(table.t) == pytest.approx(timesteps.tolist(), rel=1e-5, abs=2e-3)
    noise = torch.randn(SHAPE, generator=generator)
    ours, h1, h2 = table.start[1] * noise, torch.zeros(SHAPE), torch.zeros(SHAPE)
    theirs = noise * float(scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else 1.0) * scale
    drawn, same = (torch.Generator().manual_seed(1) for _ in range(2))
    accepted = inspect.signature(scheduler.step).parameters
    scaling = [1.0, *table.alpha] if exploding else [1.0] * (len(table) + 1)
    magnitude = noise.abs().max()
    for row in range(len(table)):
        f = torch.randn(SHAPE, generator=generator)
        eps = torch.randn(SHAPE, generator=same)
        given = {"variance_noise": eps} if "variance_noise" in accepted else {"generator": drawn}
        given = {key: value for key, value in given.items() if key in accepted} | options
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(theirs, timesteps[row])
        theirs = scheduler.step(scale * f, timesteps[row], theirs, **given).prev_sample
        coefficients = torch.tensor([table.coefficients(row)] * SHAPE[0])
        ours, h1, h2 = sampler_update(ours, f, h1, h2, coefficients, eps)
        compared: Tensor = theirs.float() * scaling[row + 1] / scale
        magnitude = torch.maximum(magnitude, compared.abs().max())
        error = ((ours - compared).abs().max() / magnitude).item()
        assert error < tolerance, f"row {row} of {len(table)}: {error}"


def agree(
    scheduler: Any, steps: int, *, tokens: int = 0, tolerance: float = 1e-5, exploding: bool = False, **setting: Any
) -> None:
    """A scheduler's own timesteps and steps against the table that its configuration gives."""
    scheduler.set_timesteps(steps, **setting)
    _, table = table_of(scheduler, steps, tokens)
    assert_same_steps(scheduler, table, tolerance=tolerance, exploding=exploding)
