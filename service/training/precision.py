"""The number format that training multiplies in: bfloat16 where the processor is fast at it, else float32."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from service.models.loading import fast_dtype


def training_dtype() -> torch.dtype:
    """Of matrix products; weights, their average and the state of the optimiser are float32 either way."""
    return fast_dtype(torch.device("cpu"))


def training_precision() -> AbstractContextManager[object]:
    """A `with` in which networks multiply in `training_dtype()`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=training_dtype() is torch.bfloat16)
