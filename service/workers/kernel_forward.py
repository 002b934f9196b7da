"""A decoder's forward by the CPU kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kernels.cpu import PackedBatch
from service.models.decoder_serving import KernelDecoder
from service.procedures.types import TokenRow
from service.workers.forward import ForwardOutput
from service.workers.packed_rows import PackedRows
from service.workers.threads import Threads


class KernelForward:
    """Logits of packed rows. A token's numbers never depend on its batch, bit for bit.

    The kernel brings its own threads, which never wait for one that has lost its processor, so it takes all of them.
    """

    def __init__(self, decoder: KernelDecoder, threads: Threads) -> None:
        self.decoder = decoder
        self._threads = threads

    def __call__(self, packed: PackedRows, inputs: Tensor | None = None, states: bool = False) -> ForwardOutput:
        """See `Forward`."""
        self._threads.leave_to_kernel()
        last: list[int] = []
        numbers: list[int] = []
        starts: list[int] = []
        for number, row in enumerate(packed.rows):
            count, span = len(row.tokens), row.span
            numbers.extend([number] * count)
            if row.mode == "tree":
                last.extend([row.start - 1] * count)
                starts.extend([row.start] * count)
                continue
            own = [row.start + offset // span * span for offset in range(count)]
            last.extend(max(min(first + span, row.start + count), row.until or 0) - 1 for first in own)
            starts.extend(own if row.mode == "block" else [-1] * count)
        width = max(map(len, packed.tables))
        tables = [table + [0] * (width - len(table)) for table in packed.tables]
        batch = PackedBatch(
            torch.tensor(packed.positions), torch.tensor(packed.slots), torch.tensor(last),
            torch.tensor(numbers, dtype=torch.int32), torch.tensor(starts, dtype=torch.int32),
            torch.tensor(tables, dtype=torch.int32), torch.tensor(packed.wanted, dtype=torch.int64),
            _visible(packed.rows),
        )  # fmt: skip
        x = self.embed(torch.tensor(packed.tokens)) if inputs is None else inputs.to(torch.float32, copy=True).contiguous()
        logits, left = self.decoder.forward(x, batch, self._threads.every, states)
        return ForwardOutput(logits, torch.isfinite(left).all(dim=-1), left if states else None)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.decoder.embed(tokens)


def _visible(rows: Sequence[TokenRow]) -> Tensor | None:
    """What each token of a tree sees of it, a bit a token."""
    if all(row.mode != "tree" for row in rows):
        return None
    bits = [mask for row in rows for mask in (row.visible or (0,) * len(row.tokens))]
    return torch.from_numpy(np.array(bits, np.uint64).view(np.int64))
