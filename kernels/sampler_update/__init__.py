"""One step of any linear sampler, for a batch whose every row is at its own step of its own sampler."""

from __future__ import annotations

from torch import Tensor

from kernels.fusing import fuses
from kernels.sampler_update import reference
from kernels.sampler_update.terms import Guidance, Noise, Update

__all__ = ["Guidance", "Noise", "Update", "sampler_step", "sampler_update"]


def sampler_update(
    x: Tensor, f: Tensor, h1: Tensor, h2: Tensor, coefficients: Tensor, eps: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """x', h1' and h2' of `sampler_step`, whose noise, if there is any, is `eps`."""
    return sampler_step(x, f, h1, h2, coefficients, eps)[:3]


def sampler_step(
    x: Tensor,
    f: Tensor,
    h1: Tensor,
    h2: Tensor,
    coefficients: Tensor,
    eps: Tensor | None = None,
    *,
    noise: Noise | None = None,
    guidance: Guidance | None = None,
    estimates: Tensor | None = None,
) -> Update:
    """Move every row by its own coefficients:

        x' = a x + b f + c1 h1 + c2 h2 + d eps        h1' = p x + q f        h2' = h1

    x, f, h1, h2, eps: [R, ...] of one shape: state, network output, history slots and fresh standard noise.
    coefficients: [R, 7], a row (a, b, c1, c2, d, p, q). The noise is `eps`, or drawn here as `noise` says; where there is
    neither, its term is left out. With `guidance` f is first combined with the output without a condition. estimates: [R, 2]:
    of the data, estimates[r, 0] x + estimates[r, 1] f.
    Returns float32 whatever the inputs were. A row's result does not depend on the other rows. On a GPU one pass over memory,
    in which nothing but tensors on it says what is done.
    Raises ValueError when the shapes do not fit together, and for noise of both kinds.
    """
    if coefficients.shape != (len(x), 7):
        raise ValueError(f"coefficients must be [{len(x)}, 7] for {len(x)} rows, not {list(coefficients.shape)}")
    for name, tensor in (("f", f), ("h1", h1), ("h2", h2), ("eps", eps)):
        if tensor is not None and tensor.shape != x.shape:
            raise ValueError(f"{name} must have the shape of x, {list(x.shape)}, not {list(tensor.shape)}")
    if eps is not None and noise is not None:
        raise ValueError("noise is either given or drawn, not both")
    _check_rows(x, noise, guidance)
    if estimates is not None and estimates.shape != (len(x), 2):
        raise ValueError(f"estimates must be [{len(x)}, 2] for {len(x)} rows, not {list(estimates.shape)}")
    if fuses(x, f):
        from kernels.sampler_update.triton_kernel import sampler_step as fused

        return fused(x, f, h1, h2, coefficients, eps, noise, guidance, estimates)
    return reference.sampler_step(x, f, h1, h2, coefficients, eps, noise, guidance, estimates)


def _check_rows(x: Tensor, noise: Noise | None, guidance: Guidance | None) -> None:
    vectors = {} if noise is None else {"seeds": noise.seeds, "draws": noise.draws}
    if guidance is not None:
        vectors |= {"partner": guidance.partner, "scale": guidance.scale}
        if guidance.unconditional.shape[1:] != x.shape[1:]:
            wanted = list(x.shape[1:])
            raise ValueError(f"unconditional must be rows of {wanted}, not of {list(guidance.unconditional.shape[1:])}")
    for name, vector in vectors.items():
        if vector.shape != (len(x),):
            raise ValueError(f"{name} must be [{len(x)}] for {len(x)} rows, not {list(vector.shape)}")
