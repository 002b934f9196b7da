"""torch.compile as a peer of kernels: what a user gets who leaves fusing to it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests.benchmarks.gpu_cases import Run


def compiled(run: Callable[..., Any], *arguments: Any, small: bool) -> dict[str, Run]:
    """At toy sizes none: compiling takes longer than all else."""
    return {} if small else {"torch.compile": partial(torch.compile(run, dynamic=False), *arguments)}
