"""Forward and backward pass of a training step as one CUDA graph, where the host would launch thousands of small kernels."""

from __future__ import annotations

from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.capture import Capture
from service.training.precision import training_attention, training_precision
from service.training.shapes_objective import Targets, squared_errors


class CapturedErrors:
    """`squared_errors` of a network whose parameters then have the gradients of their mean. Captured once for every number of
    rows; captions are padded with id 0 to `text_tokens`."""

    def __init__(self, network: nn.Module, text_tokens: int, capture: Capture) -> None:
        self.network = network
        self._text_tokens = text_tokens
        self._capture = capture
        self._captured: dict[int, _Step] = {}

    def __call__(self, targets: Targets) -> Tensor:
        """[B], to be read before the next call."""
        rows = len(targets.t)
        if rows not in self._captured:
            self._captured[rows] = _Step(self.network, self._padded(targets), self._capture)
        return self._captured[rows].run(self._padded(targets))

    def _padded(self, targets: Targets) -> Targets:
        parts = vars(targets) | {"text": F.pad(targets.text, (0, self._text_tokens - targets.text.shape[1]))}
        return Targets(**parts)


class _Step:
    def __init__(self, network: nn.Module, targets: Targets, capture: Capture) -> None:
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._targets = Targets(**{name: part.clone() for name, part in vars(targets).items()})
        self._rows = len(targets.t)
        device = targets.x.device

        def step() -> Tensor:
            """The errors and all gradients, in a row."""
            # What is cached in one run would be missing in the next.
            with training_attention(device), training_precision(device, cached=False):
                errors = squared_errors(network, self._targets)
            gradients = torch.autograd.grad(errors.mean(), self._parameters, materialize_grads=True)
            return torch.cat([errors.detach(), *(gradient.flatten() for gradient in gradients)])

        self._given, self._replay = capture(step)

    def run(self, targets: Targets) -> Tensor:
        for item in fields(Targets):
            getattr(self._targets, item.name).copy_(getattr(targets, item.name))
        self._replay()
        sizes = [self._rows, *(parameter.numel() for parameter in self._parameters)]
        errors, *gradients = self._given.split(sizes)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return errors
