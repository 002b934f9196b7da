"""One step of any linear sampler, for a batch whose every row is at its own step of its own sampler."""

from __future__ import annotations

from torch import Tensor

from kernels.sampler_update import reference

__all__ = ["sampler_update"]


def sampler_update(
    x: Tensor, f: Tensor, h1: Tensor, h2: Tensor, coefficients: Tensor, eps: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Move every row by its own coefficients:

        x' = a x + b f + c1 h1 + c2 h2 + d eps        h1' = p x + q f        h2' = h1

    x, f, h1, h2, eps: [R, ...] of one shape: state, network output, history slots and fresh standard noise.
    coefficients: [R, 7], a row (a, b, c1, c2, d, p, q). eps may be None when d is 0 in every row; its term is left out.
    Returns (x', h1', h2'), float32 whatever the inputs were. A row's result does not depend on the other rows.
    Raises ValueError when the shapes do not fit together.
    """
    if coefficients.shape != (len(x), 7):
        raise ValueError(f"coefficients must be [{len(x)}, 7] for {len(x)} rows, not {list(coefficients.shape)}")
    for name, tensor in (("f", f), ("h1", h1), ("h2", h2), ("eps", eps)):
        if tensor is not None and tensor.shape != x.shape:
            raise ValueError(f"{name} must have the shape of x, {list(x.shape)}, not {list(tensor.shape)}")
    return reference.sampler_update(x, f, h1, h2, coefficients, eps)
