"""Which cases of a repeated test run by default, and which only with the slow ones.

A property that holds for every family, drafter or rule is tried by default where the code goes another way, and for all of
them by `pytest -m slow` beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def few(every: Iterable[Any], *default: Any) -> list[Any]:
    """Parameters of a test: `every` case, of which all but the `default` ones are slow.

    A case of several arguments is a tuple. Raises ValueError for a default that is not among them.
    """
    cases = list(every)
    if unknown := [one for one in default if one not in cases]:
        raise ValueError(f"{unknown} are not among {cases}")
    marked = [(case, () if case in default else (pytest.mark.slow,)) for case in cases]
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks) for case, marks in marked]


def each_way(every: Iterable[str], kernel: Collection[str], torch: Collection[str]) -> list[Any]:
    """Pairs of a name and a `way` (a fixture: parametrise with `indirect=["way"]`); by default those that are named here."""
    pairs = [(name, way) for way in ("kernel", "torch") for name in every]
    return few(pairs, *((name, "kernel") for name in kernel), *((name, "torch") for name in torch))
