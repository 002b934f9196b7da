"""Norm and rotary embedding of queries and keys, fused with the write of keys and values into a paged store."""

from __future__ import annotations

from torch import Tensor

from kernels.dispatch import triton_for
from kernels.kv_write import reference
from kernels.kv_write.projected import Projected

__all__ = ["Projected", "kv_write"]


def kv_write(projected: Projected, store: Tensor, slots: Tensor, out: Tensor | None = None) -> Tensor:
    """Keys and values go into store [blocks, block_size, 2, Hkv, D] at `slots`, int32 or int64 [N], but for those of negative
    ones; the queries, normed and turned, come back, [N, Hq, D], in `out` where it is given. See `Projected`."""
    if triton_for(projected.query):
        from kernels.kv_write import triton_kernel

        return triton_kernel.kv_write(projected, store, slots, out)
    found = reference.kv_write(projected, store, slots)
    return found if out is None else out.copy_(found)
