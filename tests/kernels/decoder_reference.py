"""A decoder in plain torch, written from the kernel's description, with random weights, and batches for the kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu import DecoderWeights, LayerWeights, Norm, PackedBatch, pack
from service.procedures.types import TokenRow

LAYERS, HIDDEN, VOCABULARY, BLOCK = 2, 48, 70, 4


@dataclass(frozen=True)
class Shape:
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    rotary: int = 16
    intermediate: int = 56
    window: int = 0
    softcap: float = 0.0
    logit_softcap: float = 0.0
    activation: str = "silu"
    gated: bool = True
    centred: bool = False
    biased: bool = False
    norm_before: bool = True
    norm_after: bool = False
    norm_heads: bool = False
    norm_whole: bool = False


SHAPES = {
    "llama": Shape(),
    "odd sizes": Shape(heads=6, kv_heads=3, head_dim=24, rotary=24, intermediate=50),
    "one query a key": Shape(heads=3, kv_heads=3, head_dim=40, rotary=40),
    "large heads": Shape(heads=8, kv_heads=1, head_dim=256, rotary=256),
    "qwen3": Shape(norm_heads=True),
    "mistral": Shape(window=5),
    "gemma2": Shape(window=6, softcap=3.0, logit_softcap=2.0, activation="gelu_tanh", norm_after=True),
    "olmo2": Shape(norm_before=False, norm_after=True, norm_whole=True),
    "gpt2": Shape(kv_heads=4, rotary=0, activation="gelu_tanh", gated=False, centred=True, biased=True),
    "phi3": Shape(rotary=8, biased=True),
    "exact gelu": Shape(activation="gelu"),
}


class Reference:
    """The weights of a shape, and the forward of one whole sequence with them, in float64."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        self.shape, self.generator = shape, torch.Generator().manual_seed(0)
        self.dtype = dtype
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        sizes = {
            "qkv": (queries + 2 * keys, HIDDEN),
            "out": (HIDDEN, queries),
            "up": ((2 if shape.gated else 1) * shape.intermediate, HIDDEN),
            "down": (HIDDEN, shape.intermediate),
        }
        self.linears = [{name: self.linear(*size) for name, size in sizes.items()} for _ in range(LAYERS)]
        self.head = self.linear(VOCABULARY, HIDDEN)
        head_size = (queries, keys) if shape.norm_whole else (shape.head_dim, shape.head_dim)
        present = {
            "before_attention": shape.norm_before,
            "after_attention": shape.norm_after,
            "before_mlp": shape.norm_before,
            "after_mlp": shape.norm_after,
            "query_norm": shape.norm_heads or shape.norm_whole,
            "key_norm": shape.norm_heads or shape.norm_whole,
        }
        lengths = dict(zip(present, (HIDDEN, HIDDEN, HIDDEN, HIDDEN, *head_size), strict=True))
        self.norms = [{name: self.norm(lengths[name]) for name, there in present.items() if there} for _ in range(LAYERS)]
        self.last = self.norm(HIDDEN)
        exponents = torch.arange(0, shape.rotary, 2) / max(shape.rotary, 1)
        self.frequencies = (10_000.0**-exponents).float() if shape.rotary else None

    def random(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator)

    def linear(self, outputs: int, inputs: int) -> tuple[Tensor, Tensor | None]:
        bias = self.random(outputs) if self.shape.biased else None
        return (self.random(outputs, inputs) * inputs**-0.5 * 1.5).to(self.dtype), bias

    def norm(self, size: int) -> Norm:
        return Norm(1 + 0.3 * self.random(size), self.random(size) * 0.1 if self.shape.centred else None)

    def weights(self) -> DecoderWeights:
        shape = self.shape
        layers = [
            LayerWeights(
                **{name: pack(*linear, gated=name == "up" and shape.gated) for name, linear in linears.items()},
                **norms, frequencies=self.frequencies, window=shape.window, softcap=shape.softcap, norm_whole=shape.norm_whole,
            )
            for linears, norms in zip(self.linears, self.norms, strict=True)
        ]  # fmt: skip
        return DecoderWeights(
            layers, self.last, pack(*self.head), HIDDEN, shape.heads, shape.kv_heads, shape.head_dim, shape.rotary,
            shape.intermediate, 1e-6, shape.head_dim**-0.5, shape.activation, shape.gated, shape.centred, shape.logit_softcap,
        )  # fmt: skip

    def apply(self, norm: Norm | None, x: Tensor) -> Tensor:
        if norm is None:
            return x
        if self.shape.centred:
            assert norm.bias is not None
            return F.layer_norm(x, x.shape[-1:], norm.weight.double(), norm.bias.double(), 1e-6)
        return F.rms_norm(x, x.shape[-1:], norm.weight.double(), 1e-6)

    def product(self, x: Tensor, linear: tuple[Tensor, Tensor | None]) -> Tensor:
        return F.linear(x, linear[0].double(), None if linear[1] is None else linear[1].double())

    def turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [N, heads, head_dim] at `positions` [N]."""
        if self.frequencies is None:
            return x
        angles = positions[:, None] * self.frequencies.double()
        cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
        half = self.shape.rotary // 2
        low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((low * cosine - high * sine, high * cosine + low * sine, rest), dim=-1)

    def visible(self, length: int) -> Tensor:
        """Who sees whom in a causal sequence, bool [N, N]."""
        positions = torch.arange(length)
        visible = positions[None] <= positions[:, None]
        return visible & (positions[None] > positions[:, None] - self.shape.window) if self.shape.window else visible

    def forward(self, x: Tensor, visible: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """x [N, hidden] -> logits [N, V]."""
        logits, cap = self.product(self.states(x, visible, positions), self.head), self.shape.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def states(self, x: Tensor, visible: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """x [N, hidden] -> the final normed states, [N, hidden]."""
        shape, x = self.shape, x.double()
        visible = self.visible(len(x)) if visible is None else visible
        positions = torch.arange(len(x)) if positions is None else positions
        for linears, norms in zip(self.linears, self.norms, strict=True):
            x = x + self.apply(norms.get("after_attention"), self.attention(x, linears, norms, visible, positions))
            hidden = self.product(self.apply(norms.get("before_mlp"), x), linears["up"])
            activation = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda v: F.gelu(v, approximate="tanh")}[shape.activation]
            if shape.gated:
                gate, up = hidden.chunk(2, dim=-1)
                hidden = activation(gate) * up
            else:
                hidden = activation(hidden)
            x = x + self.apply(norms.get("after_mlp"), self.product(hidden, linears["down"]))
        return self.apply(self.last, x)

    def attention(
        self, x: Tensor, linears: dict[str, tuple[Tensor, Tensor | None]], norms: dict[str, Norm], visible: Tensor,
        positions: Tensor,
    ) -> Tensor:  # fmt: skip
        shape = self.shape
        sizes = [count * shape.head_dim for count in (shape.heads, shape.kv_heads, shape.kv_heads)]
        query, key, value = self.product(self.apply(norms.get("before_attention"), x), linears["qkv"]).split(sizes, dim=-1)
        if shape.norm_whole:
            query, key = self.apply(norms["query_norm"], query), self.apply(norms["key_norm"], key)
        query, key, value = (part.unflatten(1, (-1, shape.head_dim)) for part in (query, key, value))
        if shape.norm_heads:
            query, key = self.apply(norms["query_norm"], query), self.apply(norms["key_norm"], key)
        query, key = self.turned(query, positions), self.turned(key, positions)
        key, value = (part.repeat_interleave(shape.heads // shape.kv_heads, dim=1) for part in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) * shape.head_dim**-0.5
        if shape.softcap:
            scores = shape.softcap * torch.tanh(scores / shape.softcap)
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return self.product(torch.einsum("hqk,khd->qhd", weights, value).flatten(1), linears["out"])


def empty_store(shape: Shape, dtype: torch.dtype, blocks: int = 40) -> Tensor:
    return torch.zeros(LAYERS, blocks, BLOCK, 2, shape.kv_heads, shape.head_dim, dtype=dtype)


def batch_of(rows: list[tuple[int, int, list[int], int]]) -> PackedBatch:
    """Rows of (first position, tokens, block table, where what all of it sees ends, 0 if it is causal); all logits wanted."""
    columns: dict[str, list[int]] = {name: [] for name in ("positions", "slots", "last", "rows", "row_start")}
    for number, (start, count, table, until) in enumerate(rows):
        for position in range(start, start + count):
            columns["positions"].append(position)
            columns["slots"].append(table[position // BLOCK] * BLOCK + position % BLOCK)
            columns["last"].append(until - 1 if until else position)
            columns["rows"].append(number)
            columns["row_start"].append(start if until else -1)
    width = max(len(table) for _, _, table, _ in rows)
    tables = [table + [0] * (width - len(table)) for _, _, table, _ in rows]
    narrow = {"rows", "row_start"}
    tensors = {name: torch.tensor(v, dtype=torch.int32 if name in narrow else torch.int64) for name, v in columns.items()}
    count = len(columns["positions"])
    return PackedBatch(**tensors, tables=torch.tensor(tables, dtype=torch.int32), wanted=torch.arange(count))


def tree_batch(row: TokenRow, table: list[int]) -> PackedBatch:
    """All logits of a tree wanted."""
    places, count = range(row.start, row.stop), len(row.tokens)
    slots = [table[place // BLOCK] * BLOCK + place % BLOCK for place in places]
    own = torch.zeros(count, dtype=torch.int32)
    bits = torch.from_numpy(np.array(row.visible, np.uint64).view(np.int64))
    return PackedBatch(
        torch.tensor(row.positions), torch.tensor(slots), torch.full((count,), row.start - 1), own, own + row.start,
        torch.tensor([table], dtype=torch.int32), torch.arange(count), bits,
    )  # fmt: skip
