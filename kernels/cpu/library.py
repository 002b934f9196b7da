"""The C++ kernels, compiled for this processor when they are first needed and kept in a cache folder.

They need g++ and a processor with AVX-512 and its bfloat16 and byte instructions; without either, `library()` is None
and callers use plain torch. `python -m kernels.cpu` compiles ahead of time. Where there will be no compiler, as in a
container, `python -m kernels.cpu --portable` leaves a library beside the sources, for any processor with the instructions.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

log = logging.getLogger("stride.kernels")

SOURCES = Path(__file__).parent
NEEDED = {"avx512f", "avx512bw", "avx512cd", "avx512vl", "avx512dq", "avx512_bf16", "avx512vbmi"}
FLAGS = ["-O3", "-std=c++17", "-pthread", "-shared", "-fPIC", "-fno-math-errno"]
NATIVE = ["-march=native"]
PORTABLE = ["-march=x86-64-v4", "-mavx512bf16", "-mavx512vbmi"]
"""Nothing beyond NEEDED: x86-64-v4 is AVX-512 with f, bw, cd, dq and vl."""
COMPILE_SECONDS = 300


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/stride`, or `~/.cache/stride`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stride"


def processor() -> str:
    """Model and instructions of this processor: what a compiled library depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def supported() -> bool:
    """Whether this processor has the instructions."""
    return set(processor().split()) >= NEEDED


def portable_library() -> Path:
    """Where the library for any processor that has what is NEEDED lies, if it was compiled from these sources."""
    return SOURCES / f"portable-{_digest(PORTABLE)}.so"


def compile_library() -> Path:
    """The compiled library's path: the portable one where there is one; else it compiles, unless the cache has it for these
    sources, flags and processor.

    Raises RuntimeError when there is no compiler or it fails.
    """
    portable = portable_library()
    if portable.is_file():
        return portable
    return _compiled(NATIVE, cache_folder() / f"cpu-{_digest(NATIVE, processor())}.so")


def compile_portable() -> Path:
    """The same for any processor with the instructions, which this one need not have."""
    return _compiled(PORTABLE, portable_library())


def _digest(target: list[str], processor: str = "") -> str:
    digest = hashlib.blake2b(digest_size=12)
    for part in (processor, *target, *FLAGS, *(path.read_text() for path in sorted(SOURCES.glob("*.[ch]*")))):
        digest.update(part.encode())
    return digest.hexdigest()


def _compiled(target: list[str], path: Path) -> Path:
    if path.is_file():
        return path
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise RuntimeError("no C++ compiler (g++) is installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("compiling the CPU kernels into %s, once", path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        command = [compiler, *target, *FLAGS, "-o", str(fresh), *map(str, sorted(SOURCES.glob("*.cpp")))]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"{compiler} could not compile the CPU kernels: {error.stderr!s}") from error
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{compiler} took longer than {COMPILE_SECONDS} s for the CPU kernels") from error
        os.replace(fresh, path)
    return path


def _checked(status: int) -> None:
    if status:
        raise MemoryError("a CPU kernel could not reserve the memory for a forward")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library, or None (and a line in the log) where it cannot be had."""
    if sys.platform != "linux" or not supported():
        return None
    try:
        loaded = ctypes.CDLL(str(compile_library()))
    except (OSError, RuntimeError) as error:
        log.warning("the CPU kernels are not used: %s", error)
        return None
    loaded.stride_packed_bytes.restype = ctypes.c_int64
    loaded.stride_packed_bytes.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    loaded.stride_unpack_rows.restype = None
    for name in ("stride_pack", "stride_decoder_forward", "stride_flow_forward", "stride_draw_tokens", "stride_spread"):
        getattr(loaded, name).restype = _checked
    return loaded
