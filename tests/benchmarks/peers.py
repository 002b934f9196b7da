"""What Stride is measured against: the same networks, served one request after another, as a pipeline behind a queue is.

The peers are given every advantage that needs no batching: no HTTP, no scheduler, contiguous caches, fused weights, and the
thread count at which they are fastest.
"""

from __future__ import annotations

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from service.models.decoder import Decoder
from service.models.flow_transformer import FlowTransformer
from service.procedures.parameters import SamplerParameters
from service.procedures.registry import PROCEDURES


class ContiguousCache:
    """The decoder's `Attention` for one sequence: keys and values appended to preallocated tensors."""

    def __init__(self, decoder: Decoder, length: int) -> None:
        config = decoder.config
        shape = (config.num_hidden_layers, 2, length, config.num_key_value_heads, config.head_dim)
        self._store = torch.zeros(shape)
        self._window = config.sliding_window or length
        self._grouped = config.num_attention_heads != config.num_key_value_heads
        self.start = 0

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        stop = self.start + len(query)
        self._store[layer, 0, self.start : stop] = key
        self._store[layer, 1, self.start : stop] = value
        first = max(0, self.start - self._window + 1)
        keys, values = (kv[first:stop].transpose(0, 1) for kv in self._store[layer])
        at = torch.arange(self.start, stop)[:, None]
        seen = torch.arange(first, stop)[None]
        mask = None if len(query) == 1 else (seen <= at) & (seen > at - self._window)
        # Four dimensions: with three, torch takes a path that is several times slower.
        query, keys, values = query.transpose(0, 1)[None], keys[None], values[None]
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=self._grouped)
        return out[0].transpose(0, 1)


@torch.inference_mode()
def decode(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    """Greedy continuation of one prompt by `count` tokens below 256, with a cache."""
    cache = ContiguousCache(decoder, len(prompt) + count)
    fed, out = torch.tensor(prompt), list[int]()
    while len(out) < count:
        positions = torch.arange(cache.start, cache.start + len(fed))
        hidden = decoder.hidden(fed, positions, cache)[-1:]
        cache.start += len(fed)
        fed = decoder.logits(hidden)[:, :256].argmax(-1)
        out.append(int(fed))
    return out


@torch.inference_mode()
def draw(network: FlowTransformer, caption: list[int], procedure: str, parameters: dict[str, object], noise: Tensor) -> Tensor:
    """One picture from its starting noise [1, C, H, W]; guidance as a batch of two, as diffusers' pipelines do it."""
    typed = msgspec.convert(parameters, PROCEDURES[procedure].parameters)
    assert isinstance(typed, SamplerParameters)
    table, w = typed.table(), float(typed.guidance)
    null = network.config.null_token_id
    pad = network.config.pad_token_id
    rows = [caption] if w == 1.0 or table.takes_target else [caption, [null] + [pad] * (len(caption) - 1)]
    text = torch.tensor(rows)
    x, h1, h2 = noise, torch.zeros_like(noise), torch.zeros_like(noise)
    for i in range(len(table)):
        t = torch.full((len(rows),), table.t[i])
        s = torch.full((len(rows),), table.s[i]) if table.takes_target else t
        scale = torch.full((len(rows),), w if table.takes_target else 1.0)
        f = network(x.expand(len(rows), -1, -1, -1), t, s, scale, text)
        f = f if len(rows) == 1 else f[1:] + w * (f[:1] - f[1:])
        a, b, c1, c2, _, p, q = table.coefficients(i)
        x, h1, h2 = a * x + b * f + c1 * h1 + c2 * h2, p * x + q * f, h1
    return x
