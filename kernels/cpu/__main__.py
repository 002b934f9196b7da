"""Compile the kernels ahead of time: `python -m kernels.cpu`."""

from kernels.cpu.library import compile_library, supported

if supported():
    print(compile_library())
else:
    print("this processor lacks AVX-512 with bfloat16: plain torch is used, and nothing is compiled")
