"""What a function launches, recorded as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")
WARM_UP = 3
"""Runs before a capture, in which libraries choose and load their kernels and take the memory that they keep."""


class Capture(Protocol):
    """Records what a function launches."""

    def __call__(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """What the function gave, in memory that stays, and what computes it anew from what its inputs hold by then. The
        function must give tensors of the same memory whenever it is captured, wait for nothing, and decide nothing by what
        tensors hold."""
        ...


class CudaCapture:
    """By CUDA graphs, as torch's documentation prescribes: warmed up and captured on a stream of its own, all of one pool of
    memory, since never two of them run at a time and all that they gave is kept.

    Where tests have no GPU, what surrounds a capture is tested with one that calls the function again.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                function()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph does not leave its stream when a capture fails. Threads of libraries, as the one that watches over
        # NCCL, may ask the driver something meanwhile.
        with (
            torch.cuda.stream(current),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            given = function()
        return given, graph.replay
