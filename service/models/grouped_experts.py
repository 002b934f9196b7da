"""A mixture's experts as two grouped products with an activation between, where a GPU runs them all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from kernels.fusing import widens
from kernels.grouped_product import ExpertMatrices, Routing, grouped_product
from kernels.swiglu import ACTIVATIONS, gated
from service.models.weight_only import Fp8Linear, Int8Linear, WeightOnlyLinear

KINDS = (nn.Linear, Int8Linear, Fp8Linear)


class Expert(Protocol):
    """A feed-forward layer: a matrix, of gates and behind them ups where it is gated, an activation and another matrix."""

    @property
    def gated(self) -> bool: ...
    @property
    def activation(self) -> str: ...
    @property
    def down_proj(self) -> nn.Module: ...
    @property
    def entering(self) -> nn.Module | None: ...


class GroupedExperts:
    """The same numbers, to rounding, as each expert gives for the tokens that chose it. Matrices stay where they are."""

    def __init__(self, experts: Sequence[Expert]) -> None:
        self._entering = _matrices([expert.entering for expert in experts])
        self._leaving = _matrices([expert.down_proj for expert in experts])
        self._activation, self._is_gated = experts[0].activation, experts[0].gated
        self._place = _place(experts[0], experts[-1])

    @staticmethod
    def takes(expert: Expert) -> bool:
        """Whether the expert's layers compute nothing but their products (they are not tiled, say), of numbers that the kernel
        knows on their device."""
        alike = type(expert.entering) in KINDS and type(expert.down_proj) in KINDS
        return alike and widens(_tensor(expert.down_proj, "weight"))

    def are_at(self, first: Expert, last: Expert) -> bool:
        """Whether the experts, of which these are two, still have their numbers where they were found."""
        return self._place == _place(first, last)

    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x [N, d] through its chosen experts, int64 [N, per_token], times their weights [N, per_token] -> [N, d]."""
        routing = Routing(chosen, self._entering.count)
        hidden = grouped_product(x, self._entering, routing)
        hidden = gated(hidden, self._activation) if self._is_gated else ACTIVATIONS[self._activation](hidden)
        return grouped_product(hidden, self._leaving, routing, weights).unflatten(0, chosen.shape).sum(dim=1)


def _matrices(layers: Sequence[nn.Module | None]) -> ExpertMatrices:
    weights = [_tensor(layer, "weight") for layer in layers]
    scales = [_tensor(layer, "scale") for layer in layers] if isinstance(layers[0], WeightOnlyLinear) else None
    biases = [_tensor(layer, "bias") for layer in layers] if getattr(layers[0], "bias", None) is not None else None
    return ExpertMatrices(weights, scales, biases)


def _tensor(layer: nn.Module | None, name: str) -> Tensor:
    tensor = getattr(layer, name)
    assert isinstance(tensor, Tensor)
    return tensor.detach()


def _place(first: Expert, last: Expert) -> tuple[int, ...]:
    layers = (first.entering, last.entering, first.down_proj, last.down_proj)
    return tuple(_tensor(layer, "weight").data_ptr() for layer in layers)
