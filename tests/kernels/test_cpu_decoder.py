"""The C++ decoder against the same decoder in plain torch, written from its description, for shapes of many families."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu import CpuDecoder, DecoderWeights, LayerWeights, Norm, PackedBatch, library, pack

pytestmark = pytest.mark.skipif(library() is None, reason="the CPU kernels need AVX-512 with bfloat16, and g++")

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

    def turned(self, x: Tensor) -> Tensor:
        """x [N, heads, head_dim] at positions 0..N-1."""
        if self.frequencies is None:
            return x
        angles = torch.arange(len(x))[:, None] * self.frequencies.double()
        cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
        half = self.shape.rotary // 2
        low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((low * cosine - high * sine, high * cosine + low * sine, rest), dim=-1)

    def visible(self, length: int) -> Tensor:
        """Who sees whom in a causal sequence, bool [N, N]."""
        positions = torch.arange(length)
        visible = positions[None] <= positions[:, None]
        return visible & (positions[None] > positions[:, None] - self.shape.window) if self.shape.window else visible

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """x [N, hidden] -> logits [N, V]."""
        logits, cap = self.product(self.states(x, visible), self.head), self.shape.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def states(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """x [N, hidden] -> the final normed states, [N, hidden]."""
        shape, x = self.shape, x.double()
        visible = self.visible(len(x)) if visible is None else visible
        for linears, norms in zip(self.linears, self.norms, strict=True):
            x = x + self.apply(norms.get("after_attention"), self.attention(x, linears, norms, visible))
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
        self, x: Tensor, linears: dict[str, tuple[Tensor, Tensor | None]], norms: dict[str, Norm], visible: Tensor
    ) -> Tensor:
        shape = self.shape
        sizes = [count * shape.head_dim for count in (shape.heads, shape.kv_heads, shape.kv_heads)]
        query, key, value = self.product(self.apply(norms.get("before_attention"), x), linears["qkv"]).split(sizes, dim=-1)
        if shape.norm_whole:
            query, key = self.apply(norms["query_norm"], query), self.apply(norms["key_norm"], key)
        query, key, value = (part.unflatten(1, (-1, shape.head_dim)) for part in (query, key, value))
        if shape.norm_heads:
            query, key = self.apply(norms["query_norm"], query), self.apply(norms["key_norm"], key)
        query, key = self.turned(query), self.turned(key)
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


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_agrees_with_plain_torch_over_chunks_and_rows(name: str, dtype: torch.dtype) -> None:
    shape = SHAPES[name]
    reference = Reference(shape, dtype)
    kernel = CpuDecoder(reference.weights(), empty_store(shape, dtype))
    x, other = reference.random(23, HIDDEN), reference.random(9, HIDDEN)
    table, second = [7, 2, 30, 11, 4, 9], [1, 0, 5]
    parts = [
        kernel.forward(torch.cat((x[:14], other)), batch_of([(0, 14, table, 0), (0, 9, second, 0)]), 2),
        kernel.forward(x[14:15].clone(), batch_of([(14, 1, table, 0)]), 2),
        kernel.forward(x[15:].clone(), batch_of([(15, 8, table, 0)]), 2),
    ]
    found = torch.cat((parts[0][:14], *parts[1:]))
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 0.06}[dtype]
    for mine, theirs in ((found, reference.forward(x)), (parts[0][14:], reference.forward(other))):
        torch.testing.assert_close(mine.double(), theirs, atol=tolerance * float(theirs.std()) * 4, rtol=0)


@pytest.mark.parametrize("window", [0, 3])
def test_a_block_row_sees_all_of_itself_and_of_what_is_cached_behind_it(window: int) -> None:
    shape = Shape(window=window)
    reference = Reference(shape, torch.float32)
    x, table, where = reference.random(12, HIDDEN), [3, 1, 2], torch.arange(12)
    for end in (12, 10):
        kernel = CpuDecoder(reference.weights(), empty_store(shape, torch.float32))
        kernel.forward(x.clone(), batch_of([(0, 12, table, 0)]), 1)
        found = kernel.forward(x[7:end].clone(), batch_of([(7, end - 7, table, 12)]), 1)
        visible = reference.visible(12) | ((where >= 7) & (where < end))[:, None] & (where >= 7)
        torch.testing.assert_close(found.double(), reference.forward(x, visible)[7:end], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_of_all_tokens_come_beside_the_logits_and_change_none(dtype: torch.dtype) -> None:
    shape = SHAPES["gemma2"]
    reference = Reference(shape, dtype)
    x, table = reference.random(13, HIDDEN), [4, 1, 2, 0]
    plain, states = x.clone(), x.clone()
    kernel, batch = CpuDecoder(reference.weights(), empty_store(shape, dtype)), batch_of([(0, 13, table, 0)])
    assert torch.equal(kernel.forward(plain, batch, 2), kernel.forward(states, batch, 2, states=True))
    assert not torch.equal(plain, states)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.06}[dtype]
    torch.testing.assert_close(states.double(), reference.states(x), atol=tolerance * 4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_is_the_same_bit_for_bit_in_any_batch_and_on_any_threads(dtype: torch.dtype) -> None:
    shape = Shape(window=9, softcap=4.0)
    reference = Reference(shape, dtype)
    weights = reference.weights()
    inputs = [reference.random(5 + i, HIDDEN) for i in range(13)]
    tables = [[5 * i + 3, 5 * i, 5 * i + 4, 5 * i + 1, 5 * i + 2] for i in range(13)]
    rows = [(0, len(x), table, 0) for x, table in zip(inputs, tables, strict=True)]
    together = CpuDecoder(weights, empty_store(shape, dtype, 65)).forward(torch.cat(inputs), batch_of(rows), 2)
    at = 0
    for x, table in zip(inputs, tables, strict=True):
        alone = CpuDecoder(weights, empty_store(shape, dtype, 65))
        whole = torch.cat([alone.forward(x[i : i + 1].clone(), batch_of([(i, 1, table, 0)]), 1) for i in range(len(x))])
        assert torch.equal(whole, together[at : at + len(x)])
        at += len(x)


@pytest.mark.parametrize("name,place", [("gemma2", "key"), ("gemma2", "head"), ("gpt2", "up"), ("llama", "key"), ("relu", "up")])
def test_what_is_not_a_number_is_never_hidden(name: str, place: str) -> None:
    shape = SHAPES.get(name, Shape(activation="relu", gated=False))
    reference = Reference(shape, torch.float32)
    store = empty_store(shape, torch.float32)
    x, table = reference.random(9, HIDDEN), [1, 2, 0]
    if place == "head":
        reference.head[0][5, 7] = float("nan")
    elif place == "up":
        reference.linears[0]["up"][0][3, 4] = float("nan")
    kernel = CpuDecoder(reference.weights(), store)
    kernel.forward(x[:8].clone(), batch_of([(0, 8, table, 0)]), 2)
    if place == "key":
        store[:, 2, 1, 0] = float("nan")
    assert not torch.isfinite(kernel.forward(x[8:].clone(), batch_of([(8, 1, table, 0)]), 2)).all()


def test_int8_weights_are_what_they_stand_for() -> None:
    shape = Shape()
    reference = Reference(shape, torch.bfloat16)

    def quantised(linear: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
        scale = linear[0].float().abs().amax(1) / 127
        return (linear[0].float() / scale[:, None]).round().to(torch.int8), scale

    weights = reference.weights()
    coarse = []
    for linears in reference.linears:
        for name in linears:
            codes, scale = quantised(linears[name])
            linears[name] = (codes.float() * scale[:, None], None)
            coarse.append(pack(codes, scale=scale, gated=name == "up"))
    layers = [
        replace(layer, **dict(zip(("qkv", "out", "up", "down"), coarse[4 * i : 4 * i + 4], strict=True)))
        for i, layer in enumerate(weights.layers)
    ]
    kernel = CpuDecoder(replace(weights, layers=layers), empty_store(shape, torch.float32))
    x = reference.random(11, HIDDEN)
    found, expected = kernel.forward(x.clone(), batch_of([(0, 11, [0, 1, 2], 0)]), 2), reference.forward(x)
    torch.testing.assert_close(found.double(), expected, atol=0.1 * float(expected.std()), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_rows_of_packed_weights_can_be_read(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = (torch.randn(75, 22, generator=generator) * 40).clamp(-127, 127).to(dtype)
    scale = torch.rand(75, generator=generator) if dtype == torch.int8 else None
    index = torch.tensor([0, 74, 31, 32, 17, 17])
    expected = weight[index].float() * (1.0 if scale is None else scale[index, None])
    assert torch.equal(pack(weight, scale=scale).rows(index), expected)


def test_weights_that_cannot_be_packed_are_refused() -> None:
    with pytest.raises(ValueError, match="even number of inputs"):
        pack(torch.zeros(4, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"torch\.float16"):
        pack(torch.zeros(4, 4, dtype=torch.float16))
