"""Norm, rotation and write of keys and values: what the parts of a stacked product hold is read once and written once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.kv_write import Projected, kv_write
from tests.benchmarks.gpu_cases import Case


def cases(device: torch.device, small: bool = False) -> Iterable[Case]:
    dtype = torch.float32 if small else torch.bfloat16
    for heads, kv_heads, dim in ((3, 1, 16),) if small else ((32, 8, 128), (16, 8, 64)):
        for tokens in (3,) if small else (1, 64, 256, 8192):
            for normed in (False, True):
                yield _case(device, dtype, tokens, heads, kv_heads, dim, normed, small)


def _case(
    device: torch.device, dtype: torch.dtype, tokens: int, heads: int, kv_heads: int, dim: int, normed: bool, small: bool
) -> Case:
    generator = torch.Generator(device).manual_seed(tokens)
    stacked = torch.randn(tokens, heads + 2 * kv_heads, dim, generator=generator, device=device).to(dtype)
    angles = torch.rand(tokens, 1, dim // 2, generator=generator, device=device)
    cos, sin = torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1)
    weights = [torch.rand(dim, generator=generator, device=device) for _ in range(2)] if normed else [None, None]
    projected = Projected(*stacked.split((heads, kv_heads, kv_heads), dim=1), *weights, angles=(cos, sin))
    slots = torch.randperm(2 * tokens, generator=generator, device=device)[:tokens]
    ours, theirs = (torch.zeros(2 * tokens, 1, 2, kv_heads, dim, dtype=dtype, device=device) for _ in range(2))
    compiled = partial(_torch if small else torch.compile(_torch), projected, theirs, slots)
    return Case(
        f"KV write, {tokens} tokens, {heads}/{kv_heads} heads of {dim}{', normed' if normed else ''}",
        str(dtype).removeprefix("torch."), partial(_ours, projected, ours, slots),
        {"torch, written out" if small else "torch.compile": compiled},
        bytes=2 * stacked.numel() * stacked.element_size() + 8 * tokens * dim, tolerance=1e-5 if small else 2e-2,
    )  # fmt: skip


def _ours(projected: Projected, store: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    return kv_write(projected, store, slots), store


def _torch(projected: Projected, store: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Without slots that are not written, which would have to be counted on the host."""
    p = projected
    assert p.angles is not None
    turned = []
    for x, weight in ((p.query.float(), p.query_weight), (p.key.float(), p.key_weight)):
        x = x if weight is None else F.rms_norm(x, weight.shape, weight, p.eps)
        low, high = x.chunk(2, dim=-1)
        turned.append((x * p.angles[0] + torch.cat((high, low), dim=-1) * p.angles[1]).to(p.query.dtype))
    store.flatten(0, 1).index_copy_(0, slots, torch.stack((turned[1], p.value), dim=1))
    return turned[0], store
