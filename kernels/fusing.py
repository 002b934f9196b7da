"""When a fused kernel may stand in for operations of torch, and the rows that such kernels go through."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from kernels.dispatch import triton_for


def fuses(x: Tensor, *others: Tensor | None) -> bool:
    """Whether Triton runs on `x` and nobody differentiates through it or the others: the kernels have no derivatives, so
    that training stays with torch."""
    if not triton_for(x) or torch._C._are_functorch_transforms_active():
        return False
    return not (torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (x, *others)))


def widens(weight: Tensor) -> bool:
    """Whether Triton knows the weight's numbers where it lies: fp8 is for GPUs from Ada and Hopper on."""
    return weight.dtype != torch.float8_e4m3fn or weight.device.type != "cuda" or _knows_fp8(weight.device)


@cache
def _knows_fp8(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)


def rows_of(x: Tensor) -> Tensor:
    """x [..., size] as [A, B, size] whose rows are contiguous; a copy only where neither two dimensions before the last nor
    one can say where they lie."""
    rows = x if x.ndim == 3 else x.reshape(1, -1, x.shape[-1])
    return rows if rows.stride(2) == 1 else rows.contiguous()


def power_of_two(size: int) -> int:
    """The smallest that is at least `size`."""
    return 1 << max(0, size - 1).bit_length()
