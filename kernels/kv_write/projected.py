"""Queries, keys and values as their matrices leave them, and what is to become of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Projected:
    """query [N, Hq, D], key and value [N, Hkv, D]; the value may be the key. The heads of a token lie closely, tokens may lie
    apart.

    Each head of query and key is normed by its root mean square (arXiv 1910.07467) and multiplied by `query_weight` or
    `key_weight` [D], where they are given, and each of the values with `normed_values`; then queries and keys turn by `angles`,
    cos and sin float32 [N, 1, dim] (arXiv 2104.09864): the pairs (i, i + dim/2), sines of the first half being negative; what
    lies behind dim stays.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    query_weight: Tensor | None = None
    key_weight: Tensor | None = None
    normed_values: bool = False
    eps: float = 1e-6
    angles: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        if (self.query_weight is None) != (self.key_weight is None):
            raise ValueError("queries and keys are normed both or not at all")
        for part in (self.query, self.key, self.value):
            if part.stride(2) != 1 or part.stride(1) != part.shape[2]:
                raise ValueError("the heads of a token must lie closely")
