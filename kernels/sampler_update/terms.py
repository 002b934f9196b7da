"""What goes into a sampler update beside states and coefficients, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """Fresh noise: for row r `kernels.philox.normal` of its seed and draw, both int64 [R], and of the purpose, a word in
    [0, 2^31). Rows whose d is 0 draw none."""

    seeds: Tensor
    draws: Tensor
    purpose: int


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (arXiv 2207.12598): where partner[r], int64 [R], is not negative, f[r] stands for
    f_u + scale[r] (f[r] - f_u) with f_u = unconditional[partner[r]]. unconditional: [P, ...], scale: float32 [R]."""

    unconditional: Tensor
    partner: Tensor
    scale: Tensor


class Update(NamedTuple):
    """States behind an update, float32 like x, and the estimates of the data before it, where they were asked for."""

    x: Tensor
    h1: Tensor
    h2: Tensor
    estimate: Tensor | None
