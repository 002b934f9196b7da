"""Compile the kernels ahead of time: `python -m kernels.cpu`. What is missing is said, and no error: torch does the work.

With `--portable`, for any processor that has the instructions, into this folder; then it is an error where it fails."""

import platform
import sys

from kernels.cpu.library import compile_library, compile_portable, supported

if sys.argv[1:] == ["--portable"]:
    if platform.machine() == "x86_64":
        print(compile_portable())
    else:
        print("no processor of this kind has AVX-512: plain torch is used, and nothing is compiled")
elif not supported():
    print("this processor lacks AVX-512 with bfloat16: plain torch is used, and nothing is compiled")
else:
    try:
        print(compile_library())
    except (OSError, RuntimeError) as error:
        print(f"plain torch is used: {error}")
