"""Drawing tokens for a whole batch."""

from kernels.token_sampling.reference import draw_tokens

__all__ = ["draw_tokens"]
