"""The gates of feed-forward layers of 1B to 70B models, for one token and for many."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.swiglu import gated, reference
from tests.benchmarks.compiled import compiled
from tests.benchmarks.gpu_cases import Case


def cases(device: torch.device, small: bool = False) -> Iterable[Case]:
    for rows, size in ((3, 40),) if small else ((1, 14336), (64, 14336), (4096, 14336), (4096, 8192)):
        both = torch.randn(rows, 2 * size, generator=torch.Generator(device).manual_seed(rows), device=device).bfloat16()
        peers = {"F.silu and a product": partial(_two, both), **compiled(reference.gated, both, "silu", small=small)}
        yield Case(
            f"swiglu, {rows} x {size}", "bfloat16", partial(gated, both, "silu"), peers, bytes=6 * rows * size,
            flops=5 * rows * size, tolerance=2e-2,
        )  # fmt: skip


def _two(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up
