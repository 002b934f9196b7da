"""Norms of a decoder's stream, with and without the branch that is added to it, and of heads."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.rms_norm import add_rms_norm, reference, rms_norm
from tests.benchmarks.compiled import compiled
from tests.benchmarks.gpu_cases import Case

EPS = 1e-6


def cases(device: torch.device, small: bool = False) -> Iterable[Case]:
    for rows, size in ((3, 40),) if small else ((1, 4096), (64, 4096), (4096, 4096), (4096, 16384), (131072, 128)):
        generator = torch.Generator(device).manual_seed(rows)
        x, branch = torch.randn(2, rows, size, generator=generator, device=device).bfloat16()
        weight = torch.rand(size, generator=generator, device=device)
        library = partial(_library, x, weight.bfloat16())
        peers = {"F.rms_norm": library, **compiled(reference.rms_norm, x, weight, EPS, small=small)}
        yield Case(
            f"rms norm, {rows} x {size}", "bfloat16", partial(rms_norm, x, weight, EPS), peers,
            bytes=4 * x.numel() + 4 * size, flops=4 * x.numel(), tolerance=2e-2,
        )  # fmt: skip
        peers = {"F.rms_norm": partial(_added, x, branch, weight.bfloat16()), **compiled(_added, x, branch, weight, small=small)}
        yield Case(
            f"sum and rms norm, {rows} x {size}", "bfloat16", partial(add_rms_norm, x, branch, weight, EPS), peers,
            bytes=8 * x.numel() + 4 * size, flops=5 * x.numel(), tolerance=2e-2,
        )  # fmt: skip


def _library(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


def _added(x: Tensor, branch: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + branch
    return F.rms_norm(total, x.shape[-1:], weight.to(x.dtype), EPS), total
