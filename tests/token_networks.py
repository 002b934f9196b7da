"""Networks that make pictures token by token: one whose answers are known exactly, and small random ones on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from service.models.latent_network import Condition
from service.models.masked_autoregressive import MaskedAutoregressive, MaskedAutoregressiveConfig, PatchwiseNetwork

RANGE = 4.0
"""Values from -RANGE to RANGE are shown as 0 to 255."""


class GaussianField(PatchwiseNetwork):
    """Four tokens of one pixel from N(m, K), with m 0.5 for any text and 0 for none: `expand` says the mean and the deviation of
    each chosen token given the known ones, and `evaluate` the exact velocity towards that."""

    covariance = torch.tensor([[1.0, 0.8, 0.5, 0.2], [0.8, 1.0, 0.6, 0.4], [0.5, 0.6, 1.0, 0.7], [0.2, 0.4, 0.7, 1.0]])
    default_procedure: Mapping[str, Any] = {"name": "masked_autoregressive", "iterations": 4, "guidance": 1.0}

    def __init__(self) -> None:
        super().__init__(MaskedAutoregressive(MaskedAutoregressiveConfig(2, 1, 1, width=4, depth=1, heads=1, denoiser_width=4)))
        self.expanded: list[int] = []
        self.evaluated: list[int] = []

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        return [Condition({"mean": torch.tensor(0.5 if text else 0.0)}) for text in texts]

    def expand(
        self, latents: Tensor, known: Sequence[Sequence[int]], chosen: Sequence[Sequence[int]], conditions: Sequence[Condition]
    ) -> list[Condition]:
        self.expanded.append(len(latents))
        found = []
        for latent, before, now, condition in zip(latents.flatten(1), known, chosen, conditions, strict=True):
            mean, k, a, b = condition.tensors["mean"], self.covariance, list(before), list(now)
            gain = k[b][:, a] @ torch.linalg.inv(k[a][:, a])
            expected = mean + gain @ (latent[a] - mean)
            deviation = (k[b][:, b] - gain @ k[a][:, b]).diagonal().sqrt()
            found.append(Condition({"z": torch.stack((expected, deviation), dim=1), "place": torch.tensor(b)}))
        return found

    def evaluate(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, conditions: Any, adapters: Any) -> Tensor:
        self.evaluated.append(len(x))
        place = [condition.tensors["place"] for condition in conditions]
        row, column = torch.arange(len(x)).repeat_interleave(torch.tensor([len(one) for one in place])), torch.cat(place)
        mean, deviation = torch.cat([condition.tensors["z"] for condition in conditions]).unbind(1)
        now, time = x.flatten(1)[row, column], t[row]
        spread = (1 - time) ** 2 * deviation**2 + time**2
        data = mean + (1 - time) * deviation**2 / spread * (now - (1 - time) * mean)
        velocity = torch.zeros_like(x).flatten(1)
        velocity[row, column] = (now - data) / time.clamp_min(1e-4)
        return velocity.view_as(x)

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents / RANGE)


def random_patchwise(seed: int = 0) -> MaskedAutoregressive:
    """Sixteen tokens of 2x2 pixels."""
    torch.manual_seed(seed)
    config = MaskedAutoregressiveConfig(
        8, 2, width=16, depth=2, heads=2, denoiser_width=16, denoiser_depth=2, iterations=4, steps=3
    )  # fmt: skip
    network = MaskedAutoregressive(config).eval().requires_grad_(False)
    for parameter in network.denoiser.parameters():
        parameter.mul_(2.0)
    return network


def write_patchwise(folder: Path, seed: int = 0) -> Path:
    network = random_patchwise(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(network.config.to_json()))
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / "model.safetensors")
    return folder
