"""A whole decoder-only transformer in one call, over a paged cache: see decoder.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.library import library
from kernels.cpu.linear import KINDS, LinearStruct, PackedLinear, pointer

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2, "relu_squared": 3, "relu": 4}
HEAD_SIZES = (*range(1, 97), *range(113, 129), *range(241, 257))


def has_heads_of(size: int) -> bool:
    """Whether the kernel was compiled for heads of so many numbers."""
    return size in HEAD_SIZES


@dataclass(frozen=True)
class Norm:
    """`weight * x / rms(x)`, or layer norm in a `centred` decoder, but for queries and keys; float32 weight and bias [size]."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class LayerWeights:
    """One layer. A norm that is None is not there; `up` is packed `gated` in a gated decoder.

    `frequencies` float32 [rotary_size / 2] are the inverse frequencies of the rotary positions, None for none. A query
    sees `window` keys, itself included; 0 is all. `norm_whole`: query and key norms go over all heads together.
    """

    qkv: PackedLinear
    out: PackedLinear
    up: PackedLinear
    down: PackedLinear
    before_attention: Norm | None = None
    after_attention: Norm | None = None
    before_mlp: Norm | None = None
    after_mlp: Norm | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    frequencies: Tensor | None = None
    rotary_factor: float = 1.0
    window: int = 0
    softcap: float = 0.0
    norm_whole: bool = False


@dataclass(frozen=True)
class DecoderWeights:
    """A decoder: `head` gives the logits of a hidden state that `last` has normalised."""

    layers: Sequence[LayerWeights]
    last: Norm | None
    head: PackedLinear
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_size: int
    intermediate: int
    epsilon: float
    attention_scale: float
    activation: str = "silu"
    gated: bool = True
    centred: bool = False
    logit_softcap: float = 0.0


@dataclass(frozen=True)
class PackedBatch:
    """N query tokens of R rows. int64 [N]: `positions`, `slots` where keys and values go, the `last` place that each sees
    without a gap; int32 [N]: the block table `rows` of each, and `row_start`, the first place of a row that is not causal,
    else -1. `tables` int32 [R, blocks]; `wanted` int64 [W] are the tokens whose logits are asked for.

    A block row sees all from `row_start` to `last`. A token of a tree, with `last` before `row_start`, sees place
    row_start + i where bit i of `visible` int64 [N] is set; in the order of places these must stand at the positions
    row_start, row_start + 1, ... Without trees it is None, and of other tokens 0."""

    positions: Tensor
    slots: Tensor
    last: Tensor
    rows: Tensor
    row_start: Tensor
    tables: Tensor
    wanted: Tensor
    visible: Tensor | None = None


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Norm) for name in ("before_attention", "after_attention", "before_mlp", "after_mlp", "query", "key")),
        *((name, LinearStruct) for name in ("qkv", "out", "up", "down")),
        ("frequencies", ctypes.c_void_p),
        ("rotary_factor", ctypes.c_float),
        ("window", ctypes.c_int32),
        ("softcap", ctypes.c_float),
        ("norm_whole", ctypes.c_int32),
    ]


class _Decoder(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)),
        ("last", _Norm),
        ("head", LinearStruct),
        *(
            (name, ctypes.c_int64)
            for name in ("layer_count", "hidden", "heads", "kv_heads", "head_dim", "rotary_size", "intermediate")
        ),
        *((name, ctypes.c_float) for name in ("epsilon", "attention_scale", "logit_softcap")),
        *((name, ctypes.c_int32) for name in ("centred", "gated", "activation", "wide_store")),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in (
                "x", "store", "positions", "slots", "rows", "row_start", "last", "visible", "tables", "wanted", "logits",
            )
        ),
        *(
            (name, ctypes.c_int64)
            for name in ("tokens", "table_size", "block_size", "slot_count", "wanted_count", "longest", "states")
        ),
    ]


class CpuDecoder:
    """Runs `weights` over a `store` [layers, blocks, block_size, 2, kv_heads, head_dim], float32 or bfloat16.

    Activations are float32 between the matrix products, which take them in bfloat16 unless the weights are float32. A
    token's numbers do not depend on the other tokens of a batch, bit for bit, nor on the number of threads.
    Raises ValueError for a shape that the kernel does not have.
    """

    def __init__(self, weights: DecoderWeights, store: Tensor) -> None:
        loaded = library()
        assert loaded is not None, "callers ask library() first"
        if not has_heads_of(weights.head_dim):
            raise ValueError(f"heads of {weights.head_dim} are not among the kernel's sizes")
        if weights.rotary_size % 2 or weights.rotary_size > weights.head_dim:
            raise ValueError(f"{weights.rotary_size} numbers of a head of {weights.head_dim} cannot turn")
        if store.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"keys and values must be float32 or bfloat16, not {store.dtype}")
        linears = [linear for layer in weights.layers for linear in (layer.qkv, layer.out, layer.up, layer.down)]
        if len({linear.kind == KINDS[torch.float32] for linear in (*linears, weights.head)}) != 1:
            raise ValueError("either all weights are float32 or none")
        self._run = loaded.stride_decoder_forward
        self._weights, self._store = weights, store
        self._layers = (_Layer * len(weights.layers))(*map(_layer, weights.layers))
        self._decoder = _Decoder(
            self._layers, _norm(weights.last), weights.head.struct(), len(weights.layers), weights.hidden, weights.heads,
            weights.kv_heads, weights.head_dim, weights.rotary_size, weights.intermediate, weights.epsilon,
            weights.attention_scale, weights.logit_softcap, weights.centred, weights.gated,
            ACTIVATIONS[weights.activation], store.dtype == torch.float32,
        )  # fmt: skip

    def forward(self, x: Tensor, batch: PackedBatch, threads: int, states: bool = False) -> Tensor:
        """x float32 [N, hidden], the embeddings -> logits float32 [W, vocabulary].

        x is overwritten by what the last layer leaves of each token, and with `states` by the final norm of that. Keys and
        values of the batch are written to the store before any token attends.
        """
        logits = torch.empty(len(batch.wanted), self._weights.head.outputs)
        blocks, block_size = self._store.shape[1:3]
        long, short = torch.int64, torch.int32
        job = _Batch(
            pointer(x, torch.float32), pointer(self._store), pointer(batch.positions, long), pointer(batch.slots, long),
            pointer(batch.rows, short), pointer(batch.row_start, short), pointer(batch.last, long),
            pointer(batch.visible, long), pointer(batch.tables, short), pointer(batch.wanted, long), pointer(logits),
            len(x), batch.tables.shape[1], block_size, blocks * block_size, len(batch.wanted),
            int(batch.last.max()) + 1 + (0 if batch.visible is None else 64), states,
        )  # fmt: skip
        self._run(ctypes.byref(self._decoder), ctypes.byref(job), threads)
        return logits


def _norm(norm: Norm | None) -> _Norm:
    return _Norm(None, None) if norm is None else _Norm(pointer(norm.weight), pointer(norm.bias))


def _layer(layer: LayerWeights) -> _Layer:
    norms = (
        layer.before_attention, layer.after_attention, layer.before_mlp, layer.after_mlp, layer.query_norm, layer.key_norm,
    )  # fmt: skip
    linears = (layer.qkv, layer.out, layer.up, layer.down)
    return _Layer(
        *map(_norm, norms), *(linear.struct() for linear in linears), pointer(layer.frequencies), layer.rotary_factor,
        layer.window, layer.softcap, layer.norm_whole,
    )  # fmt: skip
