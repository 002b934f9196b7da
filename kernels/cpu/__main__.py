"""Compile the kernels ahead of time: `python -m kernels.cpu`. What is missing is said, and no error: torch does the work."""

from kernels.cpu.library import compile_library, supported

if not supported():
    print("this processor lacks AVX-512 with bfloat16: plain torch is used, and nothing is compiled")
else:
    try:
        print(compile_library())
    except (OSError, RuntimeError) as error:
        print(f"plain torch is used: {error}")
