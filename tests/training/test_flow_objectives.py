"""Objectives of distillation on a problem that is solved: Gaussian data, whose flow map is known in closed form.

Data are N(m, c^2) and noise is N(0, 1), so that x_t = (1 - t) x0 + t eps is N((1 - t) m, r_t^2) with r_t^2 = (1 - t)^2 c^2 + t^2,
and the flow keeps (x - mean) / r: a map, and its velocity, that any objective has to leave as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from service.training.flow_objectives import (
    FlowMap,
    consistency_residual,
    lagrangian_residual,
    meanflow_residual,
    row_losses,
    self_consistency_residual,
    trajectory_residual,
)

MEAN, SPREAD = 0.7, 0.4


def radius(t: Tensor) -> Tensor:
    return ((1 - t).square() * SPREAD**2 + t.square()).sqrt()[:, None]


def exact_end(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    return (1 - s)[:, None] * MEAN + radius(s) / radius(t) * (x - (1 - t)[:, None] * MEAN)


def exact_map(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    return (x - exact_end(x, t, s)) / (t - s)[:, None]


def exact_velocity(x: Tensor, t: Tensor) -> Tensor:
    growth = (t - (1 - t) * SPREAD**2)[:, None] / radius(t).square()
    return -MEAN + growth * (x - (1 - t)[:, None] * MEAN)


def velocity_for_all_spans(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """What a network that does not know its target does: one Euler step."""
    return exact_velocity(x, t) + 0.0 * s[:, None]


def scaled(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    return 1.05 * exact_map(x, t, s)


Residual = Callable[[FlowMap, Tensor, Tensor, Tensor], Tensor]
OBJECTIVES: dict[str, Residual] = {
    "trajectory": lambda u, x, t, s: trajectory_residual(u, x, t, s, exact_end(x, t, s)),
    "meanflow": lambda u, x, t, s: meanflow_residual(u, exact_velocity, x, t, s),
    "meanflow by differences": lambda u, x, t, s: meanflow_residual(u, exact_velocity, x, t, s, difference=1e-3),
    "lagrangian": lambda u, x, t, s: lagrangian_residual(u, exact_velocity, x, t, s),
    "lagrangian by differences": lambda u, x, t, s: lagrangian_residual(u, exact_velocity, x, t, s, difference=1e-3),
    "self_consistency": lambda u, x, t, s: self_consistency_residual(u, u, x, t, 0.3 * t + 0.7 * s, s),
    "consistency": lambda u, x, t, s: consistency_residual(u, u, exact_velocity, x, t, torch.maximum(s, t - 0.01), s),
}


def states(count: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    t = 0.3 + 0.7 * torch.rand(count, generator=generator, dtype=torch.float64)
    s = t * (0.9 * torch.rand(count, generator=generator, dtype=torch.float64))
    noise = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return (1 - t)[:, None] * MEAN + radius(t) * noise, t, s


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_exact_map_has_no_residual_and_a_wrong_one_has(name: str) -> None:
    x, t, s = states()
    residual = OBJECTIVES[name]
    assert residual(exact_map, x, t, s).abs().max() < 1e-4
    assert residual(scaled, x, t, s).abs().mean() > 1e-3
    assert residual(velocity_for_all_spans, x, t, s).abs().mean() > 1e-3


def test_a_consistency_step_is_exact_to_third_order() -> None:
    x, t, s = states()
    coarse, fine = (
        consistency_residual(exact_map, exact_map, exact_velocity, x, t, torch.maximum(s, t - h), s).abs().mean()
        for h in (0.04, 0.02)
    )
    assert 6 < coarse / fine < 10


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_map_with_one_unknown_finds_the_exact_one(name: str) -> None:
    """u = a exact + (1 - a) Euler: gradient descent on the loss leads a from 0 to 1."""
    x, t, s = states(256)
    amount = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return amount * exact_map(x, t, s) + (1 - amount) * velocity_for_all_spans(x, t, s)

    optimizer = torch.optim.Adam([amount], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        row_losses(OBJECTIVES[name](u, x, t, s)).mean().backward()
        optimizer.step()
    assert amount.item() == pytest.approx(1.0, abs=0.02)


def test_a_power_of_one_gives_rows_the_same_weight() -> None:
    residual = torch.tensor([[1.0, 1.0], [10.0, 10.0]], requires_grad=True)
    torch.testing.assert_close(row_losses(residual), torch.tensor([1.0, 100.0]))
    torch.testing.assert_close(row_losses(residual, 1.0), torch.ones(2), atol=2e-3, rtol=0.0)
    row_losses(residual, 1.0).sum().backward()
    assert residual.grad is not None
    assert residual.grad[0, 0] > residual.grad[1, 0] > 0
