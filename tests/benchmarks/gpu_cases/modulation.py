"""Adaptive norms of DiT-XL/2 at 256 and 512 pixels, and of a flow transformer of 24 x 128 channels."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.modulation import gate_added, gate_added_modulated, modulated
from tests.benchmarks.compiled import compiled
from tests.benchmarks.gpu_cases import Case

SHAPES = ((1, 256, 1152), (32, 256, 1152), (8, 1024, 1152), (4, 4096, 3072))


def cases(device: torch.device, small: bool = False) -> Iterable[Case]:
    for shape in ((2, 3, 48),) if small else SHAPES:
        generator = torch.Generator(device).manual_seed(shape[1])
        x, branch = torch.randn(2, *shape, generator=generator, device=device).bfloat16()
        parts = torch.randn(shape[0], 6 * shape[2], generator=generator, device=device).bfloat16()
        shift, scale, gate = parts.unsqueeze(1).chunk(6, dim=-1)[:3]
        name, count = " x ".join(map(str, shape)), x.numel()
        for what, ours, plain, arguments, moved, work in (
            ("norm, scale and shift", modulated, _modulated, (x, shift, scale), 2, 6),
            ("gate and sum", gate_added, torch.addcmul, (x, gate, branch), 3, 2),
            ("gate, sum, norm, scale and shift", gate_added_modulated, _both, (x, gate, branch, shift, scale), 4, 8),
        ):
            peers = {"torch": partial(plain, *arguments), **compiled(plain, *arguments, small=small)}
            yield Case(
                f"{what}, {name}", "bfloat16", partial(ours, *arguments), peers, bytes=2 * moved * count, flops=work * count,
                tolerance=5e-2,
            )  # fmt: skip


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def _both(x: Tensor, gate: Tensor, branch: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    total = torch.addcmul(x, gate, branch)
    return total, _modulated(total, shift, scale)
