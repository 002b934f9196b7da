"""Every Triton kernel compiles ahead of time for sm_90 (H100), GPU or not, and fits its registers and shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.few import few

pytest.importorskip("triton")
ROOT = Path(__file__).parent.parent.parent
SHARED_MEMORY = 227 * 1024
"""Bytes a program may have on an H100."""
BOX_MULLER = {"sampler_update"}
"""Their float64 cosine has a path for large angles that works in memory."""
SPILLED = 16
"""Bytes of registers a thread that others may spill: a number or two that are needed only at the end."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("which", few(["first", "all"], "first"))
def test_instances_of_every_kernel_compile_for_a_gpu_and_fit_it(which: str) -> None:
    """In a process without the interpreter; compiled kernels stay in Triton's cache, so that only changed ones take long."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compiling", *(["--first"] if which == "first" else [])]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    found = [json.loads(line) for line in said.stdout.splitlines()]
    errors = [f"{one['kernel']}: {one['instance']}: {one['error']}" for one in found if one["error"]]
    assert not errors, "\n".join(errors)
    with_kernels = {file.parent.name for file in ROOT.glob("kernels/*/triton_kernel*.py")}
    assert {one["kernel"] for one in found} == with_kernels, "every kernel gives instances in AOT"
    for one in found:
        assert one["shared"] <= SHARED_MEMORY, one
        assert one["stack"] <= SPILLED or one["kernel"] in BOX_MULLER, one
