"""What ranks of one network tell one another: sums, and parts brought together, by torch.distributed."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed import BroadcastOptions, FileStore, GatherOptions, ProcessGroup, ProcessGroupGloo

from service.models.partition import Partition

PATIENCE = timedelta(seconds=120)
"""For another rank to come to the same place."""


class Group:
    """This process among the ranks of one network: gloo between CPUs, over the loopback interface, NCCL between CUDA devices.

    Several can be in one process. `join` comes before all else. Where sums are `ordered` their order, and with it every bit, does
    not depend on where in a tensor a number stands; of two ranks it never does.
    """

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self._processes: ProcessGroup | None = None
        self._ordered = False

    def join(self, store: Path, device: torch.device, ordered: bool) -> None:
        """Waits for all ranks. `store` is a file, not there yet, that all of them can write."""
        rank, size = self.partition.rank, self.partition.size
        shared = FileStore(str(store), size)
        if device.type == "cuda":
            from torch.distributed import ProcessGroupNCCL

            os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
            torch.cuda.set_device(device)
            options = ProcessGroupNCCL.Options()
            options._timeout = PATIENCE
            self._processes = cast(ProcessGroup, ProcessGroupNCCL(shared, rank, size, options))
        else:
            gloo = cast(Any, ProcessGroupGloo)._Options()
            gloo._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
            gloo._timeout = PATIENCE
            self._processes = cast(ProcessGroup, ProcessGroupGloo(shared, rank, size, gloo))
        self._ordered = ordered and size > 2
        # NCCL connects, by the store, when something is first sent.
        self.sum(torch.zeros(1, device=device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def sum(self, x: Tensor) -> Tensor:
        """Over the ranks, the same bits on each; x may be overwritten."""
        x = x.contiguous()
        if self._ordered:
            parts = [torch.empty_like(x) for _ in range(self.partition.size)]
            self._joined.allgather([parts], [x]).wait()
            return torch.stack(parts).sum(dim=0, dtype=torch.float32).to(x.dtype)
        self._joined.allreduce([x]).wait()
        return x

    def gather(self, x: Tensor) -> list[Tensor] | None:
        """Each rank's x, all of one shape, at rank 0, by rank; None elsewhere."""
        leads = self.partition.rank == 0
        parts = [torch.empty_like(x) for _ in range(self.partition.size)] if leads else []
        options = GatherOptions()
        options.rootRank = 0
        self._joined.gather([parts] if leads else [], [x.contiguous()], options).wait()
        return parts if leads else None

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's x, which overwrites that of the others."""
        options = BroadcastOptions()
        options.rootRank = 0
        self._joined.broadcast([x], options).wait()
        return x

    @property
    def _joined(self) -> ProcessGroup:
        assert self._processes is not None, "the ranks have not met"
        return self._processes
