"""Runs a sampler table on the `shapes` network for many captions at once: what the server does, without a server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from service.models.flow_serving import FlowEvaluator, flow_evaluator
from service.models.flow_transformer import FlowTransformer, FlowTransformerConfig
from service.procedures.tables import SamplerTable
from service.training.caption_tokenizer import encode_captions

ROWS_A_FORWARD = 128


@dataclass(frozen=True)
class ShapesModel:
    """A network with its tokenizer; with an `evaluator` it is run by that, in place of the network."""

    network: FlowTransformer
    tokenizer: Tokenizer
    evaluator: FlowEvaluator | None = None

    @classmethod
    def load(cls, folder: Path) -> ShapesModel:
        """From a model folder; the weights are widened to float32."""
        network = FlowTransformer(FlowTransformerConfig.from_json(json.loads((folder / "config.json").read_text())))
        weights = load_file(folder / "model.safetensors")
        network.load_state_dict({name: value.float() for name, value in weights.items()})
        return cls(network.eval(), Tokenizer.from_file(str(folder / "tokenizer.json")))

    def served(self, threads: int) -> ShapesModel:
        """The same model in bfloat16, run as a server runs it; takes the network over."""
        network = self.network.to(torch.bfloat16)
        return ShapesModel(network, self.tokenizer, flow_evaluator(network, threads))

    @torch.no_grad()
    def sample(self, captions: list[str], table: SamplerTable, guidance: float, seed: int) -> Tensor:
        """One picture [N, C, H, W] a caption. Guidance is an input of a table with targets, else two rows (at 1: one)."""
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
                outputs.append(self._run(part, t, torch.full_like(t, table.s[row]), scale, words))
                continue
            if guidance == 1.0:
                outputs.append(self._run(part, t, t, torch.ones_like(t), words))
                continue
            both = torch.cat([words, empty.expand(count, -1)])
            times = t.repeat(2)
            velocity = self._run(part.repeat(2, 1, 1, 1), times, times, torch.ones_like(times), both)
            conditional, unconditional = velocity.chunk(2)
            outputs.append(torch.lerp(unconditional, conditional, guidance))
        return torch.cat(outputs)

    def _run(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, text: Tensor) -> Tensor:
        if self.evaluator is None:
            device = self.network.cosine.device
            return self.network(*(part.to(device) for part in (x, t, s, guidance, text))).float().cpu()
        pad = self.network.config.pad_token_id
        return self.evaluator(x, t, s, guidance, [[token for token in row if token != pad] for row in text.tolist()])
