"""What tests of every folder share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Read when triton is imported, which diffusers and transformers do as well: this file comes before all test modules.
# Where there is a GPU, Triton's kernels run on it; elsewhere in the interpreter.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

# No test speaks TLS, and each new client of httpx would read a bundle of certificates, which takes a twentieth of a second.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)

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
