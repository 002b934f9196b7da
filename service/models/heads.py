"""Extra modules that guess several tokens of a decoder ahead, in the three forms in which they are published.

All of them read the decoder's features: its final normed states. `FeatureModule` is one decoder layer over a token's embedding
and the features of the position before it, joined by a matrix; what it gives serves as the features of the next position,
so that it guesses any number of tokens. DeepSeek-V3's multi-token module (arXiv 2412.19437, section 2.2) norms both
inputs and the output, EAGLE's head (arXiv 2401.15077) none of them. `MedusaHeads` (arXiv 2401.10774) guess all tokens
from the features of one position, each by residual blocks and a matrix of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.models.decoder import Decoder, DecoderLayer
from service.models.decoder_config import DecoderConfig
from service.models.normalisation import RMSNorm


def layer_config(config: DecoderConfig) -> DecoderConfig:
    """Of a decoder with one layer that is like the last one of `config`, but without experts."""
    last = replace(config.layers[-1], experts=False)
    return replace(config, num_hidden_layers=1, layers=(last,), sliding_window=last.window, experts=None)


class FeatureModule(nn.Module):
    """`normed`: as DeepSeek's, else as EAGLE's, whose layer has no norm before its attention unless `entering`, and whose
    matrix may have a `bias`. `config` is one layer's: see `layer_config`."""

    def __init__(self, config: DecoderConfig, *, normed: bool, entering: bool = True, bias: bool = False) -> None:
        super().__init__()
        assert config.num_hidden_layers == 1
        self.config = config
        size = config.hidden_size
        self.enorm = RMSNorm(size, config.norm_eps) if normed else None
        self.hnorm = RMSNorm(size, config.norm_eps) if normed else None
        self.eh_proj = nn.Linear(2 * size, size, bias=bias)
        self.layer = DecoderLayer(config, 0, None if config.layers[0].rope is None else 0, dropout=0.0)
        if not entering:
            self.layer.input_layernorm = None
        self.norm = RMSNorm(size, config.norm_eps) if normed else None

    def join(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """embeddings of tokens and features of the positions before them, each [N, d] -> what the layer reads [N, d]."""
        if self.enorm is not None and self.hnorm is not None:
            embeddings, features = self.enorm(embeddings), self.hnorm(features)
        return self.eh_proj(torch.cat((embeddings, features.to(embeddings.dtype)), dim=-1))

    def decoder(self, target: Decoder) -> Decoder:
        """The layer and the norm as a decoder over input vectors; it shares the embeddings and the head of `target`."""
        with torch.device("meta"):
            decoder = Decoder(replace(self.config, tie_word_embeddings=target.config.tie_word_embeddings))
        decoder.model.layers[0] = self.layer
        decoder.model.norm = nn.Identity() if self.norm is None else self.norm
        decoder.model.embed_tokens = target.model.embed_tokens
        if not target.config.tie_word_embeddings:
            decoder.lm_head = target.lm_head
        return decoder

    def initialise(self, target: Decoder, generator: torch.Generator) -> None:
        """The layer like the target's last where the shapes agree; features pass the joining matrix and tokens are added."""
        size = self.config.hidden_size
        own, last = self.layer.state_dict(), target.model.layers[-1].state_dict()
        with torch.no_grad():
            for parameter in self.layer.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
            fitting = {name: value for name, value in last.items() if name in own and own[name].shape == value.shape}
            self.layer.load_state_dict({**self.layer.state_dict(), **fitting})
            self.eh_proj.weight.normal_(0.0, 0.5 * size**-0.5, generator=generator)
            self.eh_proj.weight[:, size:] += torch.eye(size, device=self.eh_proj.weight.device)
            if self.eh_proj.bias is not None:
                self.eh_proj.bias.zero_()


class MedusaHeads(nn.Module):
    """`count` heads, the i-th of which guesses the token i + 1 places behind the next: `blocks` times x + silu(W x + b), then
    a matrix [vocabulary, d]."""

    def __init__(self, config: DecoderConfig, count: int, blocks: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Linear(size, size, bias=bias) for _ in range(blocks)) for _ in range(count)
        )
        self.heads = nn.ModuleList(nn.Linear(size, config.vocab_size, bias=False) for _ in range(count))

    def logits(self, features: Tensor, head: int) -> Tensor:
        """features [N, d] -> float32 [N, vocabulary] of the token `head` + 1 places behind the next."""
        matrix = cast(nn.Linear, self.heads[head])
        x = features.to(matrix.weight.dtype)
        for block in cast(nn.ModuleList, self.blocks[head]):
            x = x + F.silu(block(x))
        return matrix(x).float()

    @property
    def depths(self) -> int:
        return len(self.heads)

    @property
    def block_count(self) -> int:
        return len(cast(nn.ModuleList, self.blocks[0]))

    def initialise(self, target: Decoder, generator: torch.Generator) -> None:
        """At first every head is the target's own (Medusa, section 2.1.1)."""
        matrix = target.model.embed_tokens if target.config.tie_word_embeddings else target.lm_head
        with torch.no_grad():
            for parameter in self.blocks.parameters():
                parameter.zero_()
            for parameter in self.heads.parameters():
                parameter.copy_(matrix.weight)


Heads = FeatureModule | MedusaHeads
