"""How long work on a device takes, and the ceilings that it is held against."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

FLUSH = 1 << 28
"""Bytes that are written between two runs, more than any card's cache holds."""


@dataclass(frozen=True)
class Ceilings:
    """What the device reached with nothing else to do: bytes a second of a copy, read and written, and multiplications and
    additions a second of a bfloat16 product (float32 on a CPU)."""

    copy: float
    matmul: float

    @classmethod
    def measured(cls, device: torch.device, small: bool = False) -> Ceilings:
        size, side = (1 << 22, 256) if small else (1 << 30, 8192)
        source = torch.ones(size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        # Not as a node of a graph, which copies at two thirds of that.
        copy = 2 * size / seconds(lambda: target.copy_(source), device, small, replayed=False)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        return cls(copy, 2 * side**3 / seconds(lambda: a @ b, device, small))


def seconds(work: Callable[[], object], device: torch.device, small: bool = False, replayed: bool = True) -> float:
    """The median of some twenty runs, after warming up. On a GPU the work is `replayed` as a CUDA graph, so that what the host
    takes to launch it does not count, where it can be captured; caches are cold."""
    if device.type != "cuda":
        work()
        return statistics.median(_timed(work) for _ in range(2 if small else 10))
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    replay = (_captured(work) if replayed else None) or work
    flush = torch.empty(FLUSH, dtype=torch.uint8, device=device)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(20)]
    for begin, end in events:
        flush.zero_()
        begin.record()
        replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3


def _captured(work: Callable[[], object]) -> Callable[[], None] | None:
    if _waits(work):  # a capture that fails half-way leaves torch's allocator in a state of its own
        return None
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
            work()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def _waits(work: Callable[[], object]) -> bool:
    """Whether the host waits for the GPU in it."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def idle_share(work: Callable[[], object], device: torch.device) -> str:
    """Share of the time that `work` takes in which a GPU has nothing to run, from a trace of its kernels and copies, with two
    digits; empty on a CPU, which is never idle while it works."""
    if device.type != "cuda":
        return ""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        whole = time.perf_counter() - began
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return f"{1 - covered(spans) / 1e6 / whole:.2f}"


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """How much of the line these spans cover, what several cover counted once."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def hardware(device: torch.device) -> str:
    versions = f"torch {torch.__version__}"
    if device.type != "cuda":
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {versions}"
    import triton

    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, {versions}, triton {triton.__version__}"
