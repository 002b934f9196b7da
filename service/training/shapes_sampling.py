"""Runs a sampler table on the `shapes` network for many captions at once: what the server does, without a server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from service.models.flow_transformer import FlowTransformer, FlowTransformerConfig
from service.procedures.tables import SamplerTable
from service.training.caption_tokenizer import encode_captions

ROWS_A_FORWARD = 128


@dataclass(frozen=True)
class ShapesModel:
    """A network with its tokenizer."""

    network: FlowTransformer
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path) -> ShapesModel:
        """From a model folder; the weights are widened to float32."""
        network = FlowTransformer(FlowTransformerConfig.from_json(json.loads((folder / "config.json").read_text())))
        weights = load_file(folder / "model.safetensors")
        network.load_state_dict({name: value.float() for name, value in weights.items()})
        return cls(network.eval(), Tokenizer.from_file(str(folder / "tokenizer.json")))

    @torch.no_grad()
    def sample(self, captions: list[str], table: SamplerTable, guidance: float, seed: int) -> Tensor:
        """One picture [N, C, H, W] a caption. Guidance is an input of a table with targets, two rows of any other."""
        config = self.network.config
        encoded = encode_captions(self.tokenizer, [*captions, ""])
        text, empty = encoded[:-1], encoded[-1:]
        generator = torch.Generator().manual_seed(seed)
        shape = len(captions), config.channels, config.image_size, config.image_size
        x, h1, h2 = torch.randn(shape, generator=generator), torch.zeros(shape), torch.zeros(shape)
        for row in range(len(table)):
            a, b, c1, c2, d, p, q = table.coefficients(row)
            f = self._evaluate(x, table, row, guidance, text, empty)
            noise = torch.randn(shape, generator=generator) if d else torch.zeros(())
            x, h1, h2 = a * x + b * f + c1 * h1 + c2 * h2 + d * noise, p * x + q * f, h1
        return x

    def _evaluate(self, x: Tensor, table: SamplerTable, row: int, guidance: float, text: Tensor, empty: Tensor) -> Tensor:
        outputs = []
        for part, words in zip(x.split(ROWS_A_FORWARD // 2), text.split(ROWS_A_FORWARD // 2), strict=True):
            count = len(part)
            t = torch.full((count,), table.t[row])
            if table.takes_target:
                scale = torch.full_like(t, guidance)
                outputs.append(self.network(part, t, torch.full_like(t, table.s[row]), scale, words).float())
                continue
            both = torch.cat([words, empty.expand(count, -1)])
            times = t.repeat(2)
            velocity = self.network(part.repeat(2, 1, 1, 1), times, times, torch.ones_like(times), both).float()
            conditional, unconditional = velocity.chunk(2)
            outputs.append(torch.lerp(unconditional, conditional, guidance))
        return torch.cat(outputs)
