"""A decoder's forward by torch, over a paged cache, on whatever device it lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kernels.capture import Capture
from kernels.dispatch import triton_for
from kernels.paged_attention import Plan, RowGroup, paged_attention, plan_groups, single_spans
from service.models.decoder import Attention, Decoder, DecoderConfig
from service.workers.batch_invariant import TILE, in_tiles, make_batch_invariant
from service.workers.decoding_graphs import DecodingGraphs
from service.workers.forward import ForwardOutput
from service.workers.packed_attention import PackedAttention, PlanPacker
from service.workers.packed_rows import PackedRows
from service.workers.paged_cache import PagedCache
from service.workers.staging import staged
from service.workers.threads import Threads


class PagedAttention:
    """The decoder's `Attention`: writes keys and values to the cache, then attends over every row's blocks.

    All rows write before any attends, so a later row of a request sees what an earlier one computes in this forward.
    """

    def __init__(
        self, config: DecoderConfig, cache: PagedCache, written: Tensor, groups: Mapping[int | None, Sequence[RowGroup]]
    ) -> None:
        """`groups` by window: layers with the same one share them."""
        self._config = config
        self._cache = cache
        self._written = written
        self._groups = groups

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self._cache.write(layer, self._written, key, value)
        groups, config = self._groups[self._config.layers[layer].window], self._config
        return paged_attention(query, self._cache.layers[layer], groups, config.attention_scale, config.attention_softcap)


class TorchForward:
    """Logits of packed rows; on a GPU attention is Triton's. With `batch_invariant` every number is computed in an order that
    depends on its own request alone: tiled matrix products, and queries that attend one by one, or with those that see all of
    one another; Triton's attend in tiles of one size, to contexts that are split at fixed places."""

    def __init__(self, network: Decoder, cache: PagedCache, threads: Threads, batch_invariant: bool) -> None:
        self._network = network
        self._cache = cache
        self._threads = threads
        self._token_operations = 2.0 * sum(parameter.numel() for parameter in network.parameters())
        self._windows = {layer.window for layer in network.config.layers}
        self._batch_invariant = batch_invariant
        self._packer = PlanPacker(network, cache, batch_invariant)
        self._graphs: DecodingGraphs | None = None
        if batch_invariant:
            make_batch_invariant(network)

    def __call__(self, packed: PackedRows, inputs: Tensor | None = None, states: bool = False) -> ForwardOutput:
        """See `Forward`."""
        self._threads.take(self._token_operations * (TILE if self._batch_invariant else len(packed.tokens)))
        device = self._cache.store.device
        (tokens, positions, slots, wanted, in_canvas), _ = staged(
            device, [packed.tokens, packed.positions, packed.slots, packed.wanted, packed.in_canvas()]
        )  # fmt: skip
        x = self.embed(tokens) if inputs is None else inputs.to(self._network.dtype)
        by_triton = triton_for(self._cache.store)
        plans = self._plans(packed, trees_only=by_triton)
        if self._graphs is not None and not states and self._graphs.takes(packed, plans):
            hidden = self._graphs(plans, x, positions, slots)
        else:
            attention = self._attention(plans, slots, by_triton)
            canvas = in_canvas.bool() if self._network.config.layer_scales == 2 else None
            hidden = self._network.states(x, positions, attention, canvas)
        logits = self._logits(hidden.index_select(0, wanted))
        return ForwardOutput(logits, torch.isfinite(hidden).all(dim=-1), hidden if states else None)

    def capture(self, rows: int, capture: Capture) -> None:
        """From now on decode forwards of up to so many rows are captured ones; the cache must have its memory by then. Not with
        `batch_invariant`, in which contexts are split wherever they are long."""
        if self._batch_invariant:
            return
        pool = self._cache.pool
        entries = min(rows * pool.blocks, 2 * pool.blocks + rows)
        graphs = DecodingGraphs(self._network, self._cache, self._packer, rows, entries, capture)
        graphs.prepare()
        self._graphs = graphs

    def embed(self, tokens: Tensor) -> Tensor:
        return self._network.embed(tokens)

    def _attention(self, plans: Sequence[Plan], slots: Tensor, by_triton: bool) -> Attention:
        config, cache = self._network.config, self._cache
        if by_triton:
            return PackedAttention(config, cache, slots, self._packer.packed(plans))
        return PagedAttention(config, cache, slots, {window: self._groups(plans, window) for window in self._windows})

    def _plans(self, packed: PackedRows, trees_only: bool = False) -> list[Plan]:
        """One of each row, or of each that must be computed apart from the others: `trees_only`, only what a tree's tokens see
        lies at other places than in a chain."""
        plans: list[Plan] = []
        offset, anchored = 0, self._network.config.canvas_window
        for row, table in zip(packed.rows, packed.tables, strict=True):
            whole = row.mode == "block" and row.block_length is None
            until = row.stop if whole else None
            plan = Plan(
                offset, len(row.tokens), row.start, table, until, row.span, row.depths, row.visible,
                anchored=anchored and row.mode == "block",
            )  # fmt: skip
            apart = self._batch_invariant and (row.mode == "tree" if trees_only else not whole)
            plans += single_spans(plan, self._cache.pool.block_size) if apart else [plan]
            offset += len(row.tokens)
        return plans

    def _groups(self, plans: Sequence[Plan], window: int | None) -> list[RowGroup]:
        sets = [[plan] for plan in plans] if self._batch_invariant else [plans]
        size, device = self._cache.pool.block_size, self._cache.store.device
        return [group for some in sets for group in plan_groups(some, size, window, device)]

    def _logits(self, hidden: Tensor) -> Tensor:
        if not self._batch_invariant:
            return self._network.logits(hidden)
        return in_tiles(self._network.logits, hidden)
