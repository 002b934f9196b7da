"""How near a kernel must come to its float32 reference, by the dtype that both round to at the end."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""One unit in the last place, relative: Triton's interpreter cuts bfloat16 off where a GPU rounds it."""


def assert_near(ours: Tensor, expected: Tensor, sums: float = 2e-6) -> None:
    """`sums` is for float32 sums in another order, relative to the largest number of all."""
    assert ours.dtype == expected.dtype and ours.shape == expected.shape and ours.device == expected.device
    size = float(expected.float().abs().max()) if expected.numel() else 0.0
    rounding = ROUNDING[expected.dtype]
    torch.testing.assert_close(ours, expected, rtol=rounding + 1e-6, atol=sums * size + rounding * 1e-3, equal_nan=True)
