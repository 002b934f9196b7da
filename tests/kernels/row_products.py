"""Products in Triton's interpreter whose rows have the same bits wherever they stand, as those of a GPU's tensor cores have.

The interpreter asks a BLAS, which computes rows at the end of its blocks with other instructions than the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from triton.runtime import interpreter


def make_rows_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        left, right = (x.data.astype(d.data.dtype) for x in (a, b))
        return interpreter.TensorHandle(np.einsum("mk,kn->mn", left, right, optimize=False) + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
