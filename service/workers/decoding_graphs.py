"""Decode forwards that are captured: rows of one token each, with whatever contexts, in graphs for a few numbers of rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.capture import Capture
from kernels.paged_attention import PackedPlans, Plan
from service.models.decoder import Decoder
from service.workers.graphs import CapturedRows, sizes_up_to
from service.workers.packed_attention import PackedAttention, PlanPacker
from service.workers.packed_rows import PackedRows
from service.workers.paged_cache import PagedCache

NOWHERE = -1
"""The slot of a padding row: its keys and values are not written, and it attends to nothing."""


class DecodingGraphs:
    """Hidden states of one decoder over one cache, which must not be reserved anew afterwards.

    A graph holds the attention's plans for its number of rows; what a batch's rows see is loaded into them. The head is not part
    of it: its logits would take more memory than all else, for every graph anew.
    """

    def __init__(
        self, network: Decoder, cache: PagedCache, packer: PlanPacker, rows: int, entries: int, capture: Capture
    ) -> None:
        """For up to so many rows, whose block tables have up to so many entries in all."""
        self._network = network
        self._cache = cache
        self._packer = packer
        self._entries = entries
        device, config = cache.store.device, network.config
        self._plans: dict[int, PackedPlans] = {}
        for size in sizes_up_to(rows):
            layout = packer.decoding_layout(size, entries)
            self._plans[size] = packer.on_host([], layout).to(device)
        padding = [
            torch.zeros(config.hidden_size, dtype=network.dtype, device=device),
            torch.tensor(0, device=device),
            torch.tensor(NOWHERE, device=device),
        ]
        self._graphs = CapturedRows(self._states, padding, list(self._plans), capture)

    def prepare(self) -> None:
        """Capture all of it, before there are requests."""
        self._graphs.prepare()

    def takes(self, packed: PackedRows, plans: Sequence[Plan]) -> bool:
        """Whether there is a graph for these rows: each a token that sees those before it, and no more than there is room for."""
        alone = all(row.mode == "causal" and len(row.tokens) == 1 for row in packed.rows)
        entries = sum((plan.stop - 1) // self._cache.pool.block_size + 1 for plan in plans)
        return alone and self._graphs.size_for(len(packed.rows)) is not None and entries <= self._entries

    def __call__(self, plans: Sequence[Plan], x: Tensor, positions: Tensor, slots: Tensor) -> Tensor:
        """x [R, d] at positions and slots int64 [R] -> final normed states [R, d], to be read before the next call."""
        size = self._graphs.size_for(len(x))
        assert size is not None
        there, pinned = self._plans[size], x.device.type == "cuda"
        there.load(self._packer.on_host(plans, there.layout, pinned=pinned))
        return self._graphs(x, positions, slots)

    def _states(self, size: int, x: Tensor, positions: Tensor, slots: Tensor) -> Tensor:
        attention = PackedAttention(self._network.config, self._cache, slots, self._plans[size])
        return self._network.states(x, positions, attention)
