"""The embedded flow transformer as the engine sees it: captions of known words, pixels instead of latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from service.models.flow_serving import KernelFlow, flow_evaluator
from service.models.flow_transformer import FlowTransformer
from service.models.latent_network import Adapters, Condition, GuidanceInput, Unadapted, classifier_free
from service.models.reuse import Reuse, reusing
from service.procedures.noise import NoiseProcess
from service.procedures.parameters import FlowMapParameters
from service.procedures.sizes import SizeRule


class FlowNetwork(Unadapted):
    """A `LatentNetwork` over a FlowTransformer and its tokeniser. `full` pads every caption to the longest there can be."""

    noise = NoiseProcess()
    signature: tuple[str, ...] = ("velocity(x,t)", "flow_map(x,t,s)")
    guidance_input: GuidanceInput = "jumps"
    guidance_range: tuple[float, float] | None
    decodes = False
    own_guidance = False

    def __init__(self, network: FlowTransformer, tokenizer: Path, threads: int = 1, full: bool = False) -> None:
        config = network.config
        self.config = config
        low, high = config.guidance_range
        self.default_procedure: Mapping[str, Any] = {
            "name": "flow_map", "guidance": min(max(FlowMapParameters().guidance, low), high)
        }  # fmt: skip
        self.scorers = config.scorers
        self.guidance_range = config.guidance_range
        self.sizes = SizeRule.only(config.image_size, config.image_size)
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._device = next(network.parameters()).device
        self._network = network
        self._evaluator = flow_evaluator(network, threads, full)
        self.reuses = not isinstance(self._evaluator, KernelFlow)
        self.run_by = "torch" if self.reuses else "the CPU kernel"

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        return self.config.channels, height, width

    def tokens(self, width: int, height: int) -> int:
        return width * height // self.config.patch_size**2

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        """Token ids of each caption. Raises ValueError for one that is too long or holds a word outside the vocabulary."""
        return [Condition({"ids": torch.tensor(self._ids(text), device=self._device)}) for text in texts]

    def evaluate(
        self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, conditions: Sequence[Condition], adapters: Sequence[Adapters]
    ) -> Tensor:
        if self._device.type != "cpu":
            return self.evaluate_packed(x, t, s, guidance, *self.pack(conditions))
        return self._evaluator(x, t, s, guidance, [condition.tensors["ids"].tolist() for condition in conditions])

    def pack(self, conditions: Sequence[Condition]) -> tuple[Tensor, ...]:
        """Captions int64 [R, T], padded to the longest that there can be."""
        length, padding = self.config.max_text_tokens, self.config.pad_token_id
        captions = [condition.tensors["ids"] for condition in conditions]
        return (torch.stack([F.pad(ids, (0, length - len(ids)), value=padding) for ids in captions]),)

    def evaluate_packed(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, *packed: Tensor) -> Tensor:
        return self._network(x, t, s, guidance, *packed).float()

    def reusing(self, rows: Sequence[Reuse | None]) -> AbstractContextManager[None]:
        """Needs blocks run by torch: the CPU kernel runs them all in one call."""
        return reusing(self._network, rows)

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
        return classifier_free(conditional, unconditional, scale)

    def decode(self, latents: Tensor) -> Tensor:
        return ((latents.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)

    def embed(self, pictures: Tensor) -> Tensor:
        return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0

    def _ids(self, text: str) -> list[int]:
        config = self.config
        if not text:
            return [config.null_token_id]
        ids = self._tokenizer.encode(text).ids
        if len(ids) > config.max_text_tokens:
            raise ValueError(f"a caption has at most {config.max_text_tokens} tokens, not {len(ids)}")
        beyond = next((token for token in ids if token >= config.vocab_size), None)
        if beyond is not None:
            raise ValueError(f"token {beyond} is outside the vocabulary of {config.vocab_size}")
        return ids
