"""Plain batched sampling for evaluation: next-token, and block diffusion with the threshold rule (arXiv 2505.22618).

All rows of a batch have the same length, so a dense cache does; the service has its own, paged one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from service.models.decoder import Decoder


class DenseCache:
    """`Attention` for B rows of equal length, with the keys and values kept so far ([B, Hkv, T, D] a layer)."""

    def __init__(self, decoder: Decoder, rows: int) -> None:
        self.window = decoder.config.sliding_window
        self.rows = rows
        self.length = 0
        self.bidirectional = False
        self.keep = True
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape = query.shape
        query, key, value = (x.view(self.rows, -1, *x.shape[1:]).transpose(1, 2) for x in (query, key, value))
        if layer in self._kept:
            key = torch.cat((self._kept[layer][0], key), dim=2)
            value = torch.cat((self._kept[layer][1], value), dim=2)
        if self.keep:
            self._kept[layer] = (key, value)
        grouped = query.shape[1] != key.shape[1]
        output = F.scaled_dot_product_attention(query, key, value, self._mask(query.shape[2], key.shape[2]), enable_gqa=grouped)
        return output.transpose(1, 2).reshape(shape)

    def _mask(self, queries: int, keys: int) -> Tensor:
        place = torch.arange(keys - queries, keys)[:, None]
        distance = place - torch.arange(keys)
        visible = distance < (self.window or keys + 1)
        if self.bidirectional:
            return visible | (torch.arange(keys) >= keys - queries)
        return visible & (distance >= 0)


@dataclass(frozen=True)
class Samples:
    """tokens int64 [B, N]; forwards: mean network forwards a row, the prompt's own not counted."""

    tokens: Tensor
    forwards: float
    shared_forwards: float


def forward(decoder: Decoder, cache: DenseCache, tokens: Tensor, *, block: bool = False, keep: bool = True) -> Tensor:
    """Logits [B, n, V] of tokens [B, n] that follow the cached ones; `block`: they see each other both ways."""
    rows, count = tokens.shape
    cache.bidirectional, cache.keep = block, keep
    positions = torch.arange(cache.length, cache.length + count).expand(rows, -1)
    hidden = decoder.hidden(tokens.reshape(-1), positions.reshape(-1), cache)
    if keep:
        cache.length += count
    return decoder.logits(hidden).view(rows, count, -1)


def draw(logits: Tensor, temperature: float, generator: torch.Generator, usable: int) -> tuple[Tensor, Tensor]:
    """Tokens drawn from logits [..., V] among the first `usable`, at temperature 0 the likeliest, and the plain probability of
    each (temperature 1)."""
    logits = logits[..., :usable]
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        probabilities = (logits / temperature).softmax(-1)
        tokens = torch.multinomial(probabilities.flatten(0, -2), 1, generator=generator).view(probabilities.shape[:-1])
    return tokens, logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]


@torch.no_grad()
def sample_causal(
    decoder: Decoder, prompts: Tensor, length: int, temperature: float, generator: torch.Generator, usable: int = 256
) -> Samples:
    """Next-token sampling after prompts int64 [B, P]; one forward a token."""
    cache = DenseCache(decoder, len(prompts))
    logits = forward(decoder, cache, prompts)[:, -1:]
    tokens = []
    for _ in range(length):
        token, _ = draw(logits, temperature, generator, usable)
        tokens.append(token)
        logits = forward(decoder, cache, token)
    return Samples(torch.cat(tokens, dim=1), float(length), float(length))


@torch.no_grad()
def sample_blocks(
    decoder: Decoder,
    prompts: Tensor,
    length: int,
    block_length: int,
    threshold: float,
    temperature: float,
    generator: torch.Generator,
    usable: int = 256,
) -> Samples:
    """Block by block: draw every masked position; keep the leftmost draw and those whose probability exceeds `threshold`.

    `forwards` counts the denoising passes and one pass a block that commits it. `shared_forwards` counts what remains
    when a block is committed in the same forward as the first pass of the next one; the last needs no commit.
    """
    mask = decoder.config.mask_token_id
    if mask is None:
        raise ValueError("the model was not trained for block diffusion: it has no mask token")
    rows, cache, finished, passes = len(prompts), DenseCache(decoder, len(prompts)), [], 0
    forward(decoder, cache, prompts)
    for start in range(0, length, block_length):
        canvas = torch.full((rows, min(block_length, length - start)), mask)
        while (masked := canvas == mask).any():
            tokens, confidence = draw(forward(decoder, cache, canvas, block=True, keep=False), temperature, generator, usable)
            chosen = (confidence > threshold) | (masked.cumsum(-1) == 1)
            canvas = torch.where(chosen & masked, tokens, canvas)
            passes += int(masked.any(-1).sum())
        forward(decoder, cache, canvas)
        finished.append(canvas)
    return Samples(torch.cat(finished, dim=1), passes / rows + len(finished), passes / rows)
