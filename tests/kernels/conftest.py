"""What the tests of Triton kernels share. The interpreter is chosen in tests/conftest.py, before triton is imported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import tests.kernels.interpreter  # noqa: F401
from kernels.dispatch import TRITON_IS_THERE, prefer_triton


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where Triton's kernels are tested: a GPU if there is one, else the CPU, whose tensors the interpreter takes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def triton_preferred() -> Iterator[None]:
    """Dispatch takes the Triton version in this test, wherever its tensors are."""
    if not TRITON_IS_THERE:
        pytest.skip("triton is not installed")
    with prefer_triton():
        yield
