"""Muon: momentum, orthogonalised (kellerjordan.github.io/posts/muon), for the matrices between hidden states."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = 3.4445, -4.775, 2.0315
ITERATIONS = 5


def orthogonalised(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T of a matrix [N, M], by five Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum and decoupled weight decay; the rate is in the units of AdamW (arXiv 2502.16982, eq. 4).

    The iterations run in `dtype`, where torch.optim.Muon always takes bfloat16: on a processor without fast bfloat16 that
    takes forty times as long as float32.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], rate: float, weight_decay: float, dtype: torch.dtype, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": rate, "weight_decay": weight_decay, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
                update = orthogonalised(gradient.lerp(buffer, momentum), self._dtype)
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.add_(update, alpha=-rate * 0.2 * math.sqrt(max(parameter.shape)))
