"""Exponential moving average of a network's weights: what is evaluated and shipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """float32 average of every floating-point parameter of a module.

    The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so that the average leaves the random
    initialisation behind quickly (the rule of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), not {decay}")
        self.decay = decay
        self.updates = 0
        self.weights: dict[str, Tensor] = {
            name: parameter.detach().float().clone() for name, parameter in module.named_parameters()
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = dict(module.named_parameters())
        averages = list(self.weights.values())
        torch._foreach_lerp_(averages, [parameters[name].detach().float() for name in self.weights], 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's parameters with the average."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.weights[name])

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """The module holds the averaged weights inside the `with`, and its own again afterwards."""
        own = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(own[name])

    def state_dict(self) -> dict[str, object]:
        return {"decay": self.decay, "updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.decay = float(state["decay"])  # type: ignore[arg-type]
        self.updates = int(state["updates"])  # type: ignore[call-overload]
        weights: Mapping[str, Tensor] = state["weights"]  # type: ignore[assignment]
        if weights.keys() != self.weights.keys():
            raise ValueError("the saved average belongs to another network: its parameter names differ")
        for name, average in self.weights.items():
            average.copy_(weights[name])
