"""A decoder's forward by the CPU kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpu import PackedBatch
from service.models.decoder_serving import KernelDecoder
from service.workers.packed_rows import PackedRows
from service.workers.threads import Threads


class KernelForward:
    """Logits of packed rows. A token's numbers never depend on its batch, bit for bit.

    The kernel brings its own threads, which never wait for one that has lost its processor, so it takes all of them.
    """

    def __init__(self, decoder: KernelDecoder, threads: Threads) -> None:
        self._decoder = decoder
        self._threads = threads

    def __call__(self, packed: PackedRows) -> tuple[Tensor, Tensor]:
        """Logits float32 [W, vocabulary] of the wanted tokens, and whether a token's numbers are finite, bool [N]."""
        self._threads.leave_to_kernel()
        last: list[int] = []
        numbers: list[int] = []
        starts: list[int] = []
        for number, row in enumerate(packed.rows):
            count = len(row.tokens)
            bidirectional = row.mode == "block"
            stop = row.start + count
            last.extend([stop - 1] * count if bidirectional else range(row.start, stop))
            numbers.extend([number] * count)
            starts.extend([row.start if bidirectional else -1] * count)
        width = max(map(len, packed.tables))
        tables = [table + [0] * (width - len(table)) for table in packed.tables]
        batch = PackedBatch(
            torch.tensor(packed.positions), torch.tensor(packed.slots), torch.tensor(last),
            torch.tensor(numbers, dtype=torch.int32), torch.tensor(starts, dtype=torch.int32),
            torch.tensor(tables, dtype=torch.int32), torch.tensor(packed.wanted, dtype=torch.int64),
        )  # fmt: skip
        return self._decoder.logits(torch.tensor(packed.tokens), batch, self._threads.every)
