"""Products of tokens with the matrices of their experts (arXiv 1701.06538; grouped, not padded: MegaBlocks, arXiv
2211.15841): tokens are sorted by expert and every group is multiplied with its matrix, all in one launch, without the host
ever knowing how many tokens an expert has."""

from __future__ import annotations

from torch import Tensor

from kernels.fusing import fuses
from kernels.grouped_product import reference
from kernels.grouped_product.experts import ExpertMatrices, Routing

__all__ = ["ExpertMatrices", "Routing", "grouped_product"]


def grouped_product(x: Tensor, matrices: ExpertMatrices, routing: Routing, weights: Tensor | None = None) -> Tensor:
    """What each pair's expert makes of its row: [N per_token, out], of the dtype of x, by pair number; sums in float32.

    x: [N, in], a row a token, or [N per_token, in], a row a pair. weights: [N, per_token] that the pairs' results are
    multiplied by. Raises ValueError for shapes that do not fit.
    """
    tokens, pairs = len(routing.chosen), routing.chosen.numel()
    if x.ndim != 2 or x.shape[1] != matrices.inputs or len(x) not in (tokens, pairs):
        wanted = f"[{tokens} or {pairs}, {matrices.inputs}]"
        raise ValueError(f"x must be {wanted} for {tokens} tokens of {routing.per_token} experts, not {list(x.shape)}")
    if matrices.count != routing.count:
        raise ValueError(f"{routing.count} experts can be chosen, and there are matrices of {matrices.count}")
    if fuses(x, weights):
        from kernels.grouped_product.triton_kernel import grouped_product as fused

        return fused(x, matrices, routing, weights)
    return reference.grouped_product(x, matrices, routing, weights)
