"""Philox4x32-10: random numbers as a pure function of a key and a counter, in plain integer tensor operations.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), and its library Random123. The key is a
request's 64-bit seed and the counter says which number is meant, so a number depends on nothing else: not on the batch,
the device, or what was drawn before. Words of 32 bits are held in int64, since torch lacks unsigned arithmetic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the 64-bit product; the product wraps in int64, which leaves its bits right."""
    product = word * multiplier
    return (product >> 32) & _MASK, product & _MASK


def philox(seed: Tensor, counter: Tensor) -> Tensor:
    """Four random words for every counter.

    seed: [R] int64, all 64 bits are used. counter: [R, ..., 4] int64 words in [0, 2^32), least significant word first.
    Returns [R, ..., 4] int64 words in [0, 2^32).
    """
    assert seed.dtype == counter.dtype == torch.int64 and counter.shape[0] == seed.shape[0] and counter.shape[-1] == 4
    seed = seed.reshape(-1, *[1] * (counter.ndim - 2))
    key_0, key_1 = seed & _MASK, (seed >> 32) & _MASK
    word_0, word_1, word_2, word_3 = counter.unbind(-1)
    for _ in range(_ROUNDS):
        high_0, low_0 = _multiply(word_0, _MULTIPLIER_0)
        high_1, low_1 = _multiply(word_2, _MULTIPLIER_1)
        word_0, word_1, word_2, word_3 = high_1 ^ word_1 ^ key_0, low_1, high_0 ^ word_3 ^ key_1, low_0
        key_0, key_1 = (key_0 + _WEYL_0) & _MASK, (key_1 + _WEYL_1) & _MASK
    return torch.stack((word_0, word_1, word_2, word_3), dim=-1)


def words(seeds: Tensor, draw: Tensor, purpose: int, size: int) -> Tensor:
    """The first `size` words of a request's stream for one draw: [R, size] int64 words in [0, 2^32).

    seeds: [R] int64. draw: [R] int64, the position or step that the numbers are for. purpose: what they are for, a word
    in [0, 2^32), so that two uses at one step are independent. Word e is word e mod 4 at the counter
    (e // 4, low word of draw, purpose, high word of draw); a longer stream starts with the shorter one.
    """
    if not 0 <= purpose <= _MASK:
        raise ValueError(f"purpose must be in [0, 2^32), not {purpose}")
    blocks = -(-size // 4)
    block = torch.arange(blocks, dtype=torch.int64, device=seeds.device).expand(len(seeds), blocks)
    low, high = ((part & _MASK)[:, None].expand_as(block) for part in (draw, draw >> 32))
    counter = torch.stack((block, low, torch.full_like(block, purpose), high), dim=-1)
    return philox(seeds, counter).flatten(1)[:, :size]


def uniform(seeds: Tensor, draw: Tensor, purpose: int, size: int) -> Tensor:
    """Uniform numbers strictly between 0 and 1, [R, size] float64; arguments as in `words`.

    One word a number, centred in its interval so that neither 0 nor 1 can occur. Every operation is exact, so devices
    agree bit for bit.
    """
    return (words(seeds, draw, purpose, size).double() + 0.5) * 2.0**-32


def normal(seeds: Tensor, draw: Tensor, purpose: int, size: int) -> Tensor:
    """Standard normal numbers, [R, size] float32; arguments as in `words`.

    Box-Muller on pairs of words, in float64 and rounded at the end: devices whose float64 logarithm and cosine differ
    in the last bit give the same float32, save where the value falls that close to the middle of two.
    """
    drawn = words(seeds, draw, purpose, size + size % 2)
    first, second = ((drawn.double() + 0.5) * 2.0**-32).unflatten(-1, (-1, 2)).unbind(-1)
    radius = torch.sqrt(-2.0 * torch.log(first))
    angle = 2.0 * math.pi * second
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pairs.flatten(-2)[:, :size].float()
