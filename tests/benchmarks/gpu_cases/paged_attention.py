"""Attention over a paged cache: decode reads every key and value once, prefill is bound by its products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from kernels.paged_attention import LayerKind, Plan, pack_plans, packed_attention
from tests.benchmarks.gpu_cases import Case, Run

BLOCK = 16
PROGRAMS = 4
"""Of a multiprocessor, as the server has it."""


def cases(device: torch.device, small: bool = False) -> Iterable[Case]:
    """Rows alike, as libraries take them: (rows, queries, places before them)."""
    alike = [(1, 1, 4096), (16, 1, 4096), (64, 1, 2048), (256, 1, 1024), (64, 5, 2048), (1, 2048, 0), (4, 512, 8192)]
    dtype = torch.float32 if small else torch.bfloat16
    for heads, kv_heads, dim in ((4, 2, 16),) if small else ((32, 8, 128), (28, 4, 128), (32, 8, 64), (8, 4, 256)):
        for rows, queries, before in [(2, 1, 37), (1, 19, 5)] if small else alike:
            yield _case(device, dtype, rows, queries, before, heads, kv_heads, dim, small)


def _case(
    device: torch.device, dtype: torch.dtype, rows: int, queries: int, before: int, heads: int, kv_heads: int, dim: int,
    small: bool,
) -> Case:  # fmt: skip
    generator = torch.Generator(device).manual_seed(rows)
    stop = before + queries
    count = -(-stop // BLOCK)
    blocks = torch.randperm(rows * count, generator=torch.Generator().manual_seed(0)).view(rows, count)
    store = torch.randn(rows * count, BLOCK, 2, kv_heads, dim, generator=generator, device=device).to(dtype)
    query = torch.randn(rows * queries, heads, dim, generator=generator, device=device).to(dtype)
    plans = [Plan(i * queries, queries, before, table) for i, table in enumerate(blocks.tolist())]
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    kind = LayerKind(None, heads, kv_heads, dim, store.element_size())
    packed = pack_plans(plans, BLOCK, [kind], PROGRAMS * processors).to(device)
    # Libraries get what suits them best: keys and values of a row in a row.
    places = store[blocks.to(device)].flatten(1, 2)[:, :stop]
    keys, values = (part.transpose(1, 2).contiguous() for part in places.unbind(2))
    dense = query.view(rows, queries, heads, dim).transpose(1, 2).contiguous()
    peers: dict[str, Run] = {"SDPA over contiguous rows": partial(_sdpa, dense, keys, values, before)}
    peers["FlexAttention over contiguous rows"] = _flex(dense, keys, values, before)
    paged = store.unbind(2)
    for name, build in (("varlen_attn, paged", _varlen), ("FlashInfer, paged", _flashinfer)):
        run = _usable(partial(build, query, [part.contiguous() for part in paged], blocks, rows, queries, stop))
        if run is not None:
            peers[name] = run
    seen = queries * before + queries * (queries + 1) // 2
    return Case(
        f"paged attention, {rows} x {queries} behind {before}, {heads}/{kv_heads} heads of {dim}",
        str(dtype).removeprefix("torch."), partial(packed_attention, query, store, packed, None), peers,
        bytes=(2 * rows * stop * kv_heads * dim + 2 * query.numel()) * store.element_size(),
        flops=4 * rows * seen * heads * dim, tolerance=1e-5 if small else 2e-2,
    )  # fmt: skip


def _packed(out: Tensor) -> Tensor:
    """[R, Hq, Q, D] -> [R * Q, Hq, D]."""
    return out.transpose(1, 2).flatten(0, 1)


def _sdpa(query: Tensor, keys: Tensor, values: Tensor, before: int) -> Tensor:
    causal = before == 0 and query.shape[2] > 1
    mask = None
    if query.shape[2] > 1 and not causal:
        places = torch.arange(keys.shape[2], device=query.device)
        mask = places[None] <= places[before:, None]
    return _packed(F.scaled_dot_product_attention(query, keys, values, mask, is_causal=causal, enable_gqa=True))


def _flex(query: Tensor, keys: Tensor, values: Tensor, before: int) -> Run:
    attend = torch.compile(flex_attention) if query.device.type == "cuda" else flex_attention

    def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= q + before

    mask = create_block_mask(visible, None, None, query.shape[2], keys.shape[2], device=query.device)
    return lambda: _packed(attend(query, keys, values, block_mask=mask, enable_gqa=True))


def _usable(build: partial[Run]) -> Run | None:
    """A library's way, if it is installed and takes this case: it says so by an error."""
    try:
        run = build()
        run()
    except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
    return run


def _varlen(query: Tensor, paged: Sequence[Tensor], blocks: Tensor, rows: int, queries: int, stop: int) -> Run:
    """FlashAttention as torch has it."""
    from torch.nn.attention.varlen import varlen_attn

    device = query.device
    begins = torch.arange(0, (rows + 1) * queries, queries, dtype=torch.int32, device=device)
    used = torch.full((rows,), stop, dtype=torch.int32, device=device)
    table = blocks.to(device, torch.int32)
    return lambda: varlen_attn(
        query, *paged, begins, None, queries, stop, window_size=(-1, 0), enable_gqa=True, seqused_k=used, block_table=table
    )


def _flashinfer(query: Tensor, paged: Sequence[Tensor], blocks: Tensor, rows: int, queries: int, stop: int) -> Run:
    import flashinfer

    device, count = query.device, blocks.shape[1]
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    begins, tables = (torch.arange(rows + 1, dtype=torch.int32, device=device) * each for each in (queries, count))
    last = torch.full((rows,), (stop - 1) % BLOCK + 1, dtype=torch.int32, device=device)
    shape = (query.shape[1], paged[0].shape[2], query.shape[2], BLOCK)
    listed = blocks.flatten().to(device, torch.int32)
    if queries == 1:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
        wrapper.plan(tables, listed, last, *shape, q_data_type=query.dtype)
    else:
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
        wrapper.plan(begins, tables, listed, last, *shape, causal=True, q_data_type=query.dtype)
    return lambda: wrapper.run(query, tuple(paged))
