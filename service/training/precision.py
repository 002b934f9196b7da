"""The number format that training multiplies in: bfloat16 where the device is fast at it, else float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from service.models.loading import fast_dtype

CPU = torch.device("cpu")


def training_dtype(device: torch.device = CPU) -> torch.dtype:
    """Of matrix products; weights, their average and the state of the optimiser are float32 either way."""
    return fast_dtype(device)


def training_precision(device: torch.device = CPU, cached: bool = True) -> AbstractContextManager[object]:
    """A `with` in which networks multiply in `training_dtype(device)`; their weights are converted once, if that is `cached`."""
    enabled = training_dtype(device) is torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=cached)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """A `with` in which float32 is computed as such: neither in bfloat16 nor, in convolutions of a GPU, in TF32."""
    cudnn = torch.backends.cudnn
    with torch.autocast(device.type, enabled=False), cudnn.flags(cudnn.enabled, cudnn.benchmark, allow_tf32=False):
        yield


def training_attention(device: torch.device) -> AbstractContextManager[object]:
    """A `with` whose attention is fast in both directions: the fused one has a slow backward pass in bfloat16 on CPUs."""
    if device.type == "cpu" and training_dtype(device) is torch.bfloat16:
        return sdpa_kernel(SDPBackend.MATH)
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def training_device(name: str) -> torch.device:
    """Raises ValueError for a name that torch does not know, and for a device that is not there."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot train on device {name!r}: {str(error).splitlines()[0]}") from error
    return device
