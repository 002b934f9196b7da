"""Attention on a GPU: keys and values are written as they are normed and turned, and rows attend by numbers that lie there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache as remembered

import torch
from torch import Tensor

from kernels.kv_write import Projected, kv_write
from kernels.paged_attention import LayerKind, Layout, PackedPlans, Plan, Tables, pack_plans, packed_attention
from service.models.decoder import Decoder, DecoderConfig, DecoderLayer, FusedAttention
from service.workers.paged_cache import PagedCache

PROGRAMS_A_PROCESSOR = 4
"""Programs of the attention kernel that a multiprocessor runs at a time, as its shared memory allows."""


class PackedAttention(FusedAttention):
    """The decoder's `Attention` over plans that lie on the device. All rows write before any attends.

    It reads tensors alone: a captured graph sees what is copied into `written` and `plans` later. Tokens with a negative slot
    are not written, and those of no row attend to nothing and give zeros.
    """

    def __init__(self, config: DecoderConfig, cache: PagedCache, written: Tensor, plans: PackedPlans) -> None:
        """`written`: the slots of the tokens, int32 or int64 [N]."""
        self._config = config
        self._cache = cache
        self._written = written
        self._plans = plans

    def fused(self, layer: int, projected: Projected) -> Tensor:
        store, config = self._cache.layers[layer], self._config
        query = kv_write(projected, store, self._written)
        window = config.layers[layer].window
        return packed_attention(query, store, self._plans, window, config.attention_scale, config.attention_softcap)


class PlanPacker:
    """Plans for all layers of one network over one cache."""

    def __init__(self, network: Decoder, cache: PagedCache, batch_invariant: bool) -> None:
        kinds = []
        for layer, settings, store in zip(network.model.layers, network.config.layers, cache.layers, strict=True):
            assert isinstance(layer, DecoderLayer)
            kv_heads, head_dim = store.shape[3:]
            kinds.append(LayerKind(settings.window, layer.self_attn.sizes[0], kv_heads, head_dim, store.element_size()))
        self.kinds = tuple(dict.fromkeys(kinds))
        self._tables = Tables()
        self._cache = cache
        self._batch_invariant = batch_invariant

    def packed(self, plans: Sequence[Plan], layout: Layout | None = None) -> PackedPlans:
        """On the cache's device, in one copy that the host does not wait for."""
        device = self._cache.store.device
        return self.on_host(plans, layout, pinned=device.type == "cuda").to(device)

    def on_host(self, plans: Sequence[Plan], layout: Layout | None = None, pinned: bool = False) -> PackedPlans:
        """To be loaded into plans of the same layout that lie on the device: see `PackedPlans.load`."""
        size, programs = self._cache.pool.block_size, programs_of(self._cache.store.device)
        return pack_plans(plans, size, self.kinds, programs, self._batch_invariant, layout, pinned, self._tables)

    def decoding_layout(self, rows: int, entries: int) -> Layout:
        """Of a graph for at most so many rows, of a few queries each, whose block tables have so many entries in all."""
        return Layout.decoding(rows, entries, self.kinds, programs_of(self._cache.store.device))


@remembered
def programs_of(device: torch.device) -> int:
    """Programs that fill a device."""
    if device.type != "cuda":
        return PROGRAMS_A_PROCESSOR
    return PROGRAMS_A_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
