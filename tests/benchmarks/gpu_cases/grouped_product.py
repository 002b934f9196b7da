"""The first product of mixtures of experts, of Qwen3-30B-A3B's and Mixtral's sizes, in decoding and in prefill."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.grouped_product import ExpertMatrices, Routing, grouped_product
from tests.benchmarks.gpu_cases import Case, Run

SHAPES = ((128, 8, 1536, 2048), (8, 2, 28672, 4096))


def cases(device: torch.device, small: bool = False) -> Iterable[Case]:
    for count, per_token, outputs, size in ((5, 2, 24, 32),) if small else SHAPES:
        for tokens in (3,) if small else (1, 16, 256, 4096):
            generator = torch.Generator(device).manual_seed(tokens)
            stack = torch.randn(count, outputs, size, generator=generator, device=device).mul_(size**-0.5).bfloat16()
            x = torch.randn(tokens, size, generator=generator, device=device).bfloat16()
            chosen = torch.rand(tokens, count, generator=generator, device=device).topk(per_token).indices
            pairs, used = tokens * per_token, len(chosen.unique())
            matrices = ExpertMatrices(list(stack))
            yield Case(
                f"experts, {tokens} tokens, {per_token} of {count} x {size} -> {outputs}", "bfloat16",
                partial(_ours, x, matrices, chosen),
                {"a loop over experts": partial(_loop, x, stack, chosen), **_library(x, stack, chosen)},
                bytes=2 * (used * outputs * size + tokens * size + pairs * outputs), flops=2 * pairs * outputs * size,
                tolerance=5e-2,
            )  # fmt: skip


def _ours(x: Tensor, matrices: ExpertMatrices, chosen: Tensor) -> Tensor:
    return grouped_product(x, matrices, Routing(chosen, matrices.count))


def _loop(x: Tensor, stack: Tensor, chosen: Tensor) -> Tensor:
    out = torch.empty(*chosen.shape, stack.shape[1], dtype=x.dtype, device=x.device)
    for expert in chosen.unique().tolist():
        rows, places = torch.where(chosen == expert)
        out[rows, places] = F.linear(x[rows], stack[expert])
    return out.flatten(0, 1)


def _library(x: Tensor, stack: Tensor, chosen: Tensor) -> dict[str, Run]:
    """torch's own grouped product, with sorting and gathering as it needs them; on GPUs alone."""
    if x.device.type != "cuda":
        return {}

    def run() -> Tensor:
        experts, order = chosen.flatten().sort(stable=True)
        ends = torch.searchsorted(experts, torch.arange(len(stack), device=x.device), right=True).int()
        out = torch.empty(len(order), stack.shape[1], dtype=x.dtype, device=x.device)
        out[order] = F.grouped_mm(x[order // chosen.shape[1]], stack.transpose(1, 2), offs=ends)
        return out

    return {"F.grouped_mm": run}
