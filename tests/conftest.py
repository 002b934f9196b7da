"""What tests of every folder share."""

from __future__ import annotations

import pytest

from kernels.cpu import library
from service.workers import fastest_forward


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The CPU kernel where it knows the network, and torch, which knows all."""
    if request.param == "torch":
        monkeypatch.setattr(fastest_forward, "kernel_decoder", lambda network, store, shared: None)
    elif library() is None:
        pytest.skip("the CPU kernels need AVX-512 with bfloat16, and g++")
    return str(request.param)
