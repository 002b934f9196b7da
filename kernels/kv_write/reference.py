"""Norm, rotary embedding and the write into a paged store, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.kv_write.projected import Projected


def kv_write(projected: Projected, store: Tensor, slots: Tensor) -> Tensor:
    """Keys and values go into store [blocks, block_size, 2, Hkv, D] at `slots`, int32 or int64 [N], but for those of negative
    ones; the queries, normed and turned, come back, [N, Hq, D].

    Computed in float32, and rounded once.
    """
    p = projected
    query, key = _turned(_normed(p.query, p.query_weight, p.eps), p), _turned(_normed(p.key, p.key_weight, p.eps), p)
    value = p.value.float()
    if p.normed_values:
        value = F.rms_norm(value, value.shape[-1:], None, p.eps)
    kept = slots >= 0
    both = torch.stack((key, value), dim=1)[kept]
    store.flatten(0, 1).index_copy_(0, slots[kept].long(), both.to(store.dtype))
    return query.to(p.query.dtype)


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x.float() if weight is None else F.rms_norm(x.float(), weight.shape, weight.float(), eps)


def _turned(x: Tensor, p: Projected) -> Tensor:
    if p.angles is None:
        return x
    cos, sin = p.angles
    turning, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    low, high = turning.chunk(2, dim=-1)
    return torch.cat((turning * cos + torch.cat((high, low), dim=-1) * sin, rest), dim=-1)
