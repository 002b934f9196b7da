"""What a flow map can be distilled from a velocity by.

Notation (MeanFlow, arXiv 2505.13447): time t runs from 1 (noise) to 0 (data); v(x, t) is the teacher's velocity dx/dt;
u(x, t, s) is its mean over [s, t] along the path that passes x at t, so that X(x, t, s) = x - (t - s) u(x, t, s) is where that
path passes s <= t. x is [B, ...], times are [B].

Every function here returns a residual like x: the map's prediction minus a target without gradient. It is zero for all x, t, s
where u is the exact map of v, and the loss is its square. v and `frozen`, the map that targets are read from, are called
without gradient; a guidance scale and a condition are theirs to close over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
FlowMap = Callable[[Tensor, Tensor, Tensor], Tensor]

Objective = Literal["trajectory", "meanflow", "lagrangian", "self_consistency", "consistency"]
OBJECTIVES: tuple[Objective, ...] = ("trajectory", "meanflow", "lagrangian", "self_consistency", "consistency")


def column(values: Tensor, like: Tensor) -> Tensor:
    """[B] as [B, 1, ...], to go with `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def landing(x: Tensor, span: Tensor, velocity: Tensor) -> Tensor:
    """x - span * velocity: where a mean velocity over a span [B] of time leads."""
    return x - column(span, x) * velocity


def trajectory_residual(u: FlowMap, x: Tensor, t: Tensor, s: Tensor, end: Tensor) -> Tensor:
    """Against a path that was computed before: `end` lies on it at s. Any pair of times may be asked, s < t.

    Source: knowledge distillation (arXiv 2101.02388) between any two points of a path, as the regression form of flow map
    matching (arXiv 2406.07507) has it.
    """
    return u(x, t, s) - (x - end) / column(t - s, x)


def meanflow_residual(u: FlowMap, v: Velocity, x: Tensor, t: Tensor, s: Tensor, difference: float | None = None) -> Tensor:
    """The MeanFlow identity u = v - (t - s) (d/dt) u, with d/dt along (v, 1): MeanFlow (arXiv 2505.13447), eq. 6.

    It is also the Eulerian equation of flow map matching (arXiv 2406.07507, eq. 3.16), solved for u. The derivative is taken
    in forward mode (torch.func.jvp), which needs attention by the plain path; with a `difference` h it is the central
    difference of u at t +- h, for networks with an operation that has no forward mode. h must be small beside the period
    of the network's fastest time feature: 1e-3 for frequencies of 500.
    """
    with torch.no_grad():
        velocity = v(x, t)
    if difference is None:
        prediction, rate = torch.func.jvp(lambda x, t: u(x, t, s), (x, t), (velocity, torch.ones_like(t)))  # type: ignore[misc]
    else:
        prediction = u(x, t, s)
        with torch.no_grad():
            ahead = u(landing(x, torch.full_like(t, -difference), velocity), t + difference, s)
            behind = u(landing(x, torch.full_like(t, difference), velocity), t - difference, s)
        rate = (ahead - behind) / (2 * difference)
    return prediction - landing(velocity, t - s, rate.detach())


def lagrangian_residual(u: FlowMap, v: Velocity, x: Tensor, t: Tensor, s: Tensor, difference: float | None = None) -> Tensor:
    """The end of a jump moves with the teacher's velocity there: (d/ds) X(x, t, s) = v(X, s), solved for u.

    u = v(X, s) + (t - s) (d/ds) u: Lagrangian flow map distillation (arXiv 2406.07507, eq. 3.15). `difference` as above.
    """
    if difference is None:
        prediction, rate = torch.func.jvp(lambda s: u(x, t, s), (s,), (torch.ones_like(s),))  # type: ignore[misc]
    else:
        prediction = u(x, t, s)
        with torch.no_grad():
            rate = (u(x, t, s + difference) - u(x, t, s - difference)) / (2 * difference)
    with torch.no_grad():
        velocity = v(landing(x, t - s, prediction.detach()), s)
    return prediction - landing(velocity, s - t, rate.detach())


def self_consistency_residual(u: FlowMap, frozen: FlowMap, x: Tensor, t: Tensor, middle: Tensor, s: Tensor) -> Tensor:
    """One jump from t to s is two, over `middle`: shortcut models (arXiv 2410.12557), progressive flow map matching.

    It says nothing of the velocity: u(x, t, t) must be taught beside it.
    """
    with torch.no_grad():
        first = frozen(x, t, middle)
        second = frozen(landing(x, t - middle, first), middle, s)
        target = _joined(first, second, t, middle, s)
    return u(x, t, s) - target


def consistency_residual(u: FlowMap, frozen: FlowMap, v: Velocity, x: Tensor, t: Tensor, middle: Tensor, s: Tensor) -> Tensor:
    """A jump from t to s is a step of the teacher to a near `middle`, and a jump from there.

    With s = 0 it is consistency distillation (arXiv 2303.01469, algorithm 2, with Heun's method as its solver); with any s
    that of consistency trajectory models (arXiv 2310.02279). Exact to the third order of t - middle.
    """
    with torch.no_grad():
        first = v(x, t)
        first = (first + v(landing(x, t - middle, first), middle)) / 2
        second = frozen(landing(x, t - middle, first), middle, s)
        target = _joined(first, second, t, middle, s)
    return u(x, t, s) - target


def row_losses(residual: Tensor, power: float = 0.0) -> Tensor:
    """Mean squares [B] of a residual, divided by themselves to the `power` (MeanFlow, arXiv 2505.13447, eq. 22): 0 leaves
    them, 1 gives every row about the same weight."""
    square = residual.float().square().flatten(1).mean(1)
    return square / (square.detach() + 1e-3) ** power


def _joined(first: Tensor, second: Tensor, t: Tensor, middle: Tensor, s: Tensor) -> Tensor:
    """The mean velocity over [s, t] of one over [middle, t] and one over [s, middle]; s < t."""
    share = column((t - middle) / (t - s), first)
    return share * first + (1 - share) * second
