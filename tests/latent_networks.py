"""A network with all that an image model can have, so small that its answers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from service.models.latent_network import Adapters, Condition, GuidanceInput, Unadapted, classifier_free
from service.models.reuse_memory import Reuse
from service.procedures.noise import NoiseProcess
from service.procedures.sizes import SizeRule


class ToyNetwork(Unadapted):
    """Latents of 2 channels and an eighth of the picture's side; a text is the mean of its characters' codes. It counts what
    it is asked, and refuses texts with a "#"."""

    noise = NoiseProcess()
    signature = ("velocity(x,t)",)
    guidance_input: GuidanceInput = "no"
    default_procedure: Mapping[str, Any] = {"name": "euler", "steps": 4, "guidance": 2.0}
    sizes = SizeRule((64, 64), multiple_of=8, smallest=16, largest=128, area=128 * 64)
    adapters: tuple[str, ...] = ("brighter",)
    scorers: tuple[str, ...] = ()
    guidance_range = None
    reuses = False
    decodes = True
    own_guidance = False
    run_by = "torch"
    parameters = 100

    def __init__(self) -> None:
        self.encoded: list[list[str]] = []
        self.evaluated: list[int] = []
        self.decoded: list[int] = []

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        return 2, height // 8, width // 8

    def tokens(self, width: int, height: int) -> int:
        return width * height // 256

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        self.encoded.append(list(texts))
        if any("#" in text for text in texts):
            raise ValueError("this model knows no #")
        return [Condition({"mean": torch.tensor(sum(map(ord, text)) / max(1, len(text)) / 64 - 1)}) for text in texts]

    def evaluate(
        self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, conditions: Sequence[Condition], adapters: Sequence[Adapters]
    ) -> Tensor:
        self.evaluated.append(len(x))
        data = torch.stack([condition.tensors["mean"] for condition in conditions])
        data = data + torch.tensor([sum(scale for _, scale in row) for row in adapters])
        return (x - 0.3 * torch.tanh(data).view(-1, 1, 1, 1)) / t.clamp_min(1e-3).view(-1, 1, 1, 1)

    def reusing(self, rows: Sequence[Reuse | None]) -> AbstractContextManager[None]:
        assert not any(rows)
        return nullcontext()

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
        return classifier_free(conditional, unconditional, scale)

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded.append(len(latents))
        grey = latents.mean(dim=1).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        return grey.repeat_interleave(8, 1).repeat_interleave(8, 2)[..., None].expand(-1, -1, -1, 3)

    def embed(self, pictures: Tensor) -> Tensor:
        grey = pictures.float().mean(dim=3, keepdim=True).permute(0, 3, 1, 2) / 127.5 - 1.0
        return torch.nn.functional.avg_pool2d(grey, 8).expand(-1, 2, -1, -1).contiguous()
