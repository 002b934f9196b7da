"""The matrices of a mixture's experts, wherever each lies, and which tokens go through which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


class ExpertMatrices:
    """One matrix [out, in] of each of E experts, all of one shape and dtype: a floating-point one, or of 8 bits with a scale
    for each row (see `kernels.weight_only`). They lie where they were loaded: a kernel finds them by their addresses, and this
    object keeps them there.

    Raises ValueError for matrices that differ, or whose rows are not contiguous.
    """

    def __init__(
        self, weights: Sequence[Tensor], scales: Sequence[Tensor] | None = None, biases: Sequence[Tensor] | None = None
    ) -> None:
        first = weights[0]
        for weight in weights:
            if weight.shape != first.shape or weight.dtype != first.dtype or weight.stride() != first.stride():
                raise ValueError("the matrices of experts must be alike in shape, dtype and strides")
        if first.stride(1) != 1:
            raise ValueError("the rows of an expert's matrix must be contiguous")
        self.weights, self.scales, self.biases = list(weights), _listed(scales), _listed(biases)
        self.dtype, self.device = first.dtype, first.device
        self.outputs, self.inputs = first.shape

    @property
    def count(self) -> int:
        return len(self.weights)

    def parts(self) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
        """Weight, scale and bias of every expert."""
        for i, weight in enumerate(self.weights):
            yield weight, self.scales[i] if self.scales else None, self.biases[i] if self.biases else None

    @cached_property
    def addresses(self) -> Tensor:
        """int64 [3, E] on the device: of weights, scales and biases; 0 where there are none."""
        none = [0] * self.count
        every = [[tensor.data_ptr() for tensor in some] or none for some in (self.weights, self.scales, self.biases)]
        return torch.tensor(every, dtype=torch.int64, device=self.device)


@dataclass(frozen=True)
class Routing:
    """chosen: int64 [N, per_token], the experts that each of N tokens goes through, of `count`. A pair (token, place) has the
    number token * per_token + place. Nothing is read back from the device."""

    chosen: Tensor
    count: int

    @property
    def per_token(self) -> int:
        return self.chosen.shape[1]

    @cached_property
    def sorted(self) -> tuple[Tensor, Tensor]:
        """The pairs' numbers in the order of their experts, int64 [N per_token], and where each expert's end, int64 [count]."""
        experts, order = self.chosen.flatten().sort(stable=True)
        each = torch.arange(self.count, device=experts.device)
        return order, torch.searchsorted(experts, each, right=True)


def _listed(tensors: Sequence[Tensor] | None) -> list[Tensor]:
    return [] if tensors is None else list(tensors)
