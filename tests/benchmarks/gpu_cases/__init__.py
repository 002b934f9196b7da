"""What a kernel is measured at: a module a kernel, each with `cases(device, small=False) -> Iterable[Case]`.

`small` asks for toy sizes, at which the interpreter can run a case on a CPU: there every case is held against its peers.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

Result = Tensor | tuple[Tensor, ...] | None
Run = Callable[[], Result]


@dataclass(frozen=True)
class Case:
    """One kernel at one size.

    `ours` computes it through the kernel's public function, each of `peers` by another way that a user could take: the
    reference, a library, torch.compile. They return what they computed, so that it can be compared within `tolerance`
    (relative and absolute); None where there is nothing to compare, such as random tokens. `bytes` are those that any
    version must read and write, each once; `flops` count a multiplication and an addition as two.
    """

    name: str
    dtype: str
    ours: Run
    peers: dict[str, Run] = field(default_factory=dict)
    bytes: int = 0
    flops: int = 0
    tolerance: float = 1e-5


def every_case(device: torch.device, small: bool = False, only: str = "") -> Iterator[Case]:
    """All cases of all kernels whose module's name contains `only`."""
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        if only in module.name:
            yield from importlib.import_module(f"{__name__}.{module.name}").cases(device, small)
