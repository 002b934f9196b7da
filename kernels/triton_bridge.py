"""What Triton compiles beside kernels, ahead of time: for images without a compiler.

Kernels become machine code by Triton's own means. Its bridge to CUDA's driver is C, which it compiles with `$CC` when a process
first launches a kernel. `python -m kernels.triton_bridge FOLDER` compiles it where there is a compiler, without a GPU, and
puts a program beside it that Triton can call as its compiler: `CC=FOLDER/cc`.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

MODULE = "cuda_utils"
DRIVER = "libcuda.so.1"
COMPILER = f"""#!/bin/sh
# Called as a C compiler by Triton, for the one module that it needs: hands out what was compiled with the image.
here=$(dirname "$0")
while [ $# -gt 0 ]; do
    case "$1:$2" in
        -o:*/{MODULE}*) exec cp "$here/{MODULE}.so" "$2" ;;
    esac
    shift
done
echo "there is no compiler in this image" >&2
exit 1
"""


def build(folder: Path) -> None:
    """Writes the module and the program into the folder.

    Raises RuntimeError where triton or a compiler is missing, or where this triton compiles more than the bridge.
    """
    spec = importlib.util.find_spec("triton")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if spec is None or not spec.submodule_search_locations or compiler is None:
        raise RuntimeError("triton and a C compiler are needed")
    backend = Path(spec.submodule_search_locations[0]) / "backends/nvidia"
    if "make_launcher" in (backend / "driver.py").read_text():
        raise RuntimeError("this triton compiles a launcher for every kernel, which cannot be done ahead of time")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        # The driver comes with the GPU: here a library without anything in it stands for it.
        _run(compiler, "-shared", f"-Wl,-soname,{DRIVER}", "-x", "c", "/dev/null", "-o", f"{scratch}/{DRIVER}")
        _run(
            compiler, str(backend / "driver.c"), "-O3", "-shared", "-fPIC", "-Wno-psabi", f"-I{backend / 'include'}",
            f"-I{sysconfig.get_paths()['include']}", f"-L{scratch}", "-Wl,--no-as-needed", f"-l:{DRIVER}",
            "-o", str(folder / f"{MODULE}.so"),
        )  # fmt: skip
    program = folder / "cc"
    program.write_text(COMPILER)
    program.chmod(0o755)


def _run(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{command[0]} could not compile Triton's bridge to the driver: {ended.stderr}")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
