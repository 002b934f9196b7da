"""Products of a decode step with the matrices of a 1B and an 8B model, in 8 bits."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.weight_only import DTYPES, weight_only
from tests.benchmarks.compiled import compiled
from tests.benchmarks.gpu_cases import Case

SHAPES = ((2048, 2048), (16384, 2048), (6144, 4096), (28672, 4096), (4096, 14336))


def cases(device: torch.device, small: bool = False) -> Iterable[Case]:
    for outputs, size in ((20, 48),) if small else SHAPES:
        for rows in (2,) if small else (1, 4, 16, 64):
            for kind in DTYPES:
                generator = torch.Generator(device).manual_seed(rows)
                weight = torch.randn(outputs, size, generator=generator, device=device).mul(30).clamp(-127, 127).to(kind)
                scale = torch.rand(outputs, generator=generator, device=device) / 30
                x = torch.randn(rows, size, generator=generator, device=device).bfloat16()
                wide = (weight.float() * scale[:, None]).bfloat16()
                peers = {
                    "cuBLAS in bfloat16": partial(F.linear, x, wide),
                    "widened and cuBLAS": partial(_widened, x, weight, scale),
                    **compiled(_widened, x, weight, scale, small=small),
                }
                yield Case(
                    f"{str(kind).removeprefix('torch.')} weights, {rows} x {size} -> {outputs}", "bfloat16",
                    partial(weight_only, x, weight, scale), peers,
                    bytes=outputs * size + 2 * rows * (outputs + size) + 4 * outputs, flops=2 * rows * outputs * size,
                    tolerance=0.15,
                )  # fmt: skip


def _widened(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)
