"""Drawing tokens for a whole batch."""

from kernels.token_sampling.adjust import add_bias, apply_bitmask, penalise, plain_logprobs
from kernels.token_sampling.reference import draw_tokens

__all__ = ["add_bias", "apply_bitmask", "draw_tokens", "penalise", "plain_logprobs"]
