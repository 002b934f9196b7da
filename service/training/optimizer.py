"""Muon for the hidden matrices, AdamW for everything else, and one learning-rate schedule for both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from service.training.muon import Muon
from service.training.precision import training_dtype


@dataclass(frozen=True)
class Schedule:
    """Warm-up, plateau, linear decay to zero (WSD, arXiv 2404.06395), as a factor of the peak learning rate."""

    steps: int
    warmup_steps: int
    decay_fraction: float = 0.5

    def factor(self, step: int) -> float:
        """The factor, in [0, 1], for the 0-based optimiser step `step`."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay_steps = max(1, round(self.steps * self.decay_fraction))
        return min(warmup, max(0.0, (self.steps - step) / decay_steps), 1.0)


def split_parameters(named: Iterable[tuple[str, nn.Parameter]]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices for Muon, the rest for AdamW): embeddings, heads, norms and biases are not hidden matrices.

    Muon orthogonalises the update of a linear map between hidden states (kellerjordan.github.io/posts/muon); look-up
    tables and maps to logits or from raw inputs keep AdamW. A parameter opts out by having "embed" or "head" in its name.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        hidden = parameter.ndim == 2 and "embed" not in name and "head" not in name
        (matrices if hidden else rest).append(parameter)
    return matrices, rest


class SplitOptimizer:
    """Muon and torch.optim.AdamW stepped together under one schedule; both rates are in the units of AdamW."""

    def __init__(
        self,
        module: nn.Module,
        schedule: Schedule,
        *,
        matrix_rate: float = 5e-3,
        other_rate: float = 3e-3,
        weight_decay: float = 0.05,
        gradient_clip: float = 1.0,
    ) -> None:
        self.schedule = schedule
        self.gradient_clip = gradient_clip
        self.matrices, self.rest = split_parameters(module.named_parameters())
        self._parts: list[tuple[torch.optim.Optimizer, float]] = []
        if self.matrices:
            muon = Muon(self.matrices, matrix_rate, weight_decay, training_dtype(self.matrices[0].device))
            self._parts.append((muon, matrix_rate))
        if self.rest:
            adamw = torch.optim.AdamW(self.rest, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0)
            self._parts.append((adamw, other_rate))

    def step(self, step: int) -> Tensor:
        """Clip, apply the gradients at 0-based step `step`, clear them; returns the gradient norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.matrices + self.rest, self.gradient_clip)
        factor = self.schedule.factor(step)
        for optimizer, rate in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [optimizer.state_dict() for optimizer, _ in self._parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for (optimizer, _), saved in zip(self._parts, state["parts"], strict=True):
            optimizer.load_state_dict(saved)
