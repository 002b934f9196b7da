"""Triton finds its bridge to the driver where there is no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.triton_bridge import build

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs Linux and gcc")

# What CudaUtils of triton does before it loads the module, which needs a driver.
ASK = """
import os, sys
from triton.backends.nvidia import driver
from triton.runtime import build
folder = os.path.dirname(driver.__file__)
source = os.path.join(folder, "driver.c")
print(build.compile_so_from_file(
    src_path=source, name="cuda_utils", library_dirs=[], include_dirs=driver.include_dirs, libraries=["libcuda.so.1"]))
"""


def ask(program: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": "/nowhere:/bin", "CC": str(program), "TRITON_CACHE_DIR": str(cache), "HOME": str(cache)}
    return subprocess.run([sys.executable, "-c", ASK], env=variables, capture_output=True, text=True, timeout=100)


def test_triton_takes_the_bridge_that_was_compiled_without_a_gpu(tmp_path: Path) -> None:
    try:
        build(tmp_path / "bridge")
    except RuntimeError as error:
        if "a launcher for every kernel" not in str(error):
            raise
        pytest.skip(str(error))
    ended = ask(tmp_path / "bridge/cc", tmp_path / "cache")
    assert ended.returncode == 0, ended.stderr
    module = Path(ended.stdout.strip())
    assert module.read_bytes() == (tmp_path / "bridge/cuda_utils.so").read_bytes()
    needed = subprocess.run(["readelf", "--dynamic", str(module)], capture_output=True, text=True)
    if needed.returncode == 0:
        assert "Shared library: [libcuda.so.1]" in needed.stdout
    refused = subprocess.run([tmp_path / "bridge/cc", "-o", "/tmp/other.so"], capture_output=True, text=True)
    assert refused.returncode == 1 and "no compiler" in refused.stderr and os.access(tmp_path / "bridge/cc", os.X_OK)
