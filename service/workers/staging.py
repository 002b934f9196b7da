"""Numbers of the host on their way to a device: one pinned buffer, one copy, and nobody waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def staged(
    device: torch.device, longs: Sequence[Sequence[int]], floats: Sequence[Sequence[float]] = ()
) -> tuple[list[Tensor], list[Tensor]]:
    """Lists of numbers as int64 and float32 tensors on the device, parts of one buffer.

    torch.tensor(list, device="cuda") waits for the device, since the host's memory may be gone afterwards. What is pinned is
    kept by torch until the copy is over.
    """
    count = sum(map(len, longs))
    flat = torch.empty(2 * count + sum(map(len, floats)), dtype=torch.int32, pin_memory=device.type == "cuda")
    _fill(flat[: 2 * count].view(torch.int64).numpy(), longs)
    _fill(flat[2 * count :].view(torch.float32).numpy(), floats)
    there = flat.to(device, non_blocking=True)
    whole, broken = there[: 2 * count].view(torch.int64), there[2 * count :].view(torch.float32)
    return list(whole.split([len(part) for part in longs])), list(broken.split([len(part) for part in floats]))


def to_device(values: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """An array of the host's, of whatever type and shape."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _fill(flat: NDArray[Any], parts: Sequence[Sequence[float]]) -> None:
    at = 0
    for part in parts:
        flat[at : at + len(part)] = part
        at += len(part)
