"""What the tests of Triton kernels share. The interpreter is chosen in tests/conftest.py, before triton is imported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels.dispatch import TRITON_IS_THERE, prefer_triton

if TRITON_IS_THERE:
    import triton.language.core as core
    from triton.runtime import interpreter

    def _call(self: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
        if core.is_builtin(core.full) and self.fn.__globals__.get("core") is core:
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    # The interpreter replaces triton.language by its own at every launch, and looks through all of it again whenever one
    # function of a kernel calls another, which finds nothing left to replace and takes most of the time.
    interpreter.InterpretedFunction.__call__ = _call


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
