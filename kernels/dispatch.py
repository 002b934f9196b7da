"""Which version of a kernel runs: the Triton one where tensors are on a GPU, else plain torch.

Modules named `triton_kernel` import triton, so they are imported inside the branch that this file decides, and a machine
without triton never needs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

from torch import Tensor

TRITON_IS_THERE = find_spec("triton") is not None
_preferred = 0


class Instance(NamedTuple):
    """One instance of a Triton kernel to be compiled ahead of time; `AOT` of every `triton_kernel` module is a list of them.

    `signature` names the type of every parameter in order ("*fp32", "i32", "i32:16" for a multiple of 16, "constexpr", ...),
    `constants` gives the values of the constexprs, `options` what a launch would: num_warps, num_stages.
    """

    function: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int] = {}


def triton_for(x: Tensor) -> bool:
    """Whether the Triton version is to run on this tensor: it is on a GPU, or `prefer_triton` asks for it."""
    return TRITON_IS_THERE and (x.device.type == "cuda" or _preferred > 0)


@contextmanager
def prefer_triton() -> Iterator[None]:
    """Inside, tensors of any device take the Triton version: those on a CPU run in Triton's interpreter.

    For that, TRITON_INTERPRET=1 must have been in the environment before triton was first imported.
    """
    global _preferred
    _preferred += 1
    try:
        yield
    finally:
        _preferred -= 1
