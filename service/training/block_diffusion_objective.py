"""Next-token and block-diffusion losses of one set of weights, in one forward (BD3-LM, arXiv 2503.09573).

A training row is [clean | noised]. The clean half of L tokens is an ordinary causal language model. The noised half
repeats them, cut into blocks in which some tokens are masked; a block sees itself in both directions and the clean
tokens before it, and its masked positions predict themselves. Clean keys and values are therefore always causal ones:
at serving time both axes share one cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from service.models.decoder import Decoder

PREFIX_SHARE = 0.6
WHOLE_SHARE = 0.25
NEARNESS = 0.9
PIECE = 96


@dataclass(frozen=True)
class NoisedText:
    """The noised half of a batch; B rows of L positions, the same as those of the clean half.

    tokens: int64 [B, L], some of them the mask token. targets: int64 [B, L], the clean tokens, -100 where nothing is
    masked. weights: float32 [B, L], what a position counts for in the loss, 0 where nothing is masked. block_starts:
    int64 [B, L], the position at which the block of each token begins. longest: of the blocks, in tokens.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    block_starts: Tensor
    longest: int


def noise_text(clean: Tensor, block_lengths: tuple[int, ...], mask_token: int, generator: torch.Generator) -> NoisedText:
    """Mask tokens of `clean` (int64 [B, L]), at least one in every block; the block length is drawn per row.

    Blocks are masked as they stand while they are decoded. Most, `PREFIX_SHARE` of them, from some position on, since
    decoding sets the leftmost mask in every pass: from the first position in `WHOLE_SHARE` of these, else from any. The
    others at random, at a rate of their own, uniform in (0, 1]. Of the masks of a block, the first counts for 1 and each
    next one for `NEARNESS` of the one before: what lies far ahead of the known text cannot be predicted yet, and is only
    noise in the gradient.

    Raises ValueError when the blocks do not tile the row.
    """
    rows, length = clean.shape
    longest = max(block_lengths)
    if length % longest or any(longest % block for block in block_lengths):
        raise ValueError(f"a row of {length} tokens cannot be cut into blocks of {block_lengths}")
    offsets = torch.arange(length)
    blocks = torch.tensor(block_lengths)[torch.randint(len(block_lengths), (rows, 1), generator=generator)]
    starts = offsets // blocks * blocks

    def per_block() -> Tensor:
        return torch.rand((rows, length), generator=generator).gather(1, starts)

    known = torch.where(per_block() < WHOLE_SHARE, 0, (per_block() * blocks).long())
    rate = 1.0 - per_block()
    draws = torch.rand((rows, length), generator=generator)
    lowest = torch.full((rows, length), 2.0).scatter_reduce(1, starts, draws, "amin").gather(1, starts)
    masked = torch.where(per_block() < PREFIX_SHARE, offsets - starts >= known, (draws < rate) | (draws == lowest))
    before = masked.cumsum(1) - masked.long()
    order = before - before.gather(1, starts)
    return NoisedText(
        tokens=torch.where(masked, mask_token, clean),
        targets=torch.where(masked, clean, -100),
        weights=torch.where(masked, NEARNESS**order, 0.0),
        block_starts=starts,
        longest=longest,
    )


@dataclass(frozen=True)
class Piece:
    """Positions start..stop of a row: they see clean keys from `first` on. Masks are true where a key may be seen.

    clean: bool [stop - start, stop - first]. noised: bool [B, 1, stop - start, stop - first + stop - start], the clean keys and
    then the piece's own noised ones.
    """

    start: int
    stop: int
    first: int
    clean: Tensor
    noised: Tensor | None


def cut(length: int, window: int | None, noised: NoisedText | None) -> list[Piece]:
    """Pieces of about `PIECE` positions, whole blocks each, so that little of what a window hides is computed."""
    size = PIECE if noised is None else noised.longest * max(1, PIECE // noised.longest)
    reach = window or length
    pieces = []
    for start in range(0, length, size):
        stop, first = min(start + size, length), max(0, start - reach + 1)
        query, key = torch.arange(start, stop)[:, None], torch.arange(first, stop)
        near = query - key < reach
        mask = None
        if noised is not None:
            blocks = noised.block_starts[:, start:stop]
            own = blocks[:, :, None] == blocks[:, None, :]
            mask = torch.cat((near & (key < blocks[:, :, None]), own), dim=-1)[:, None]
        pieces.append(Piece(start, stop, first, near & (key <= query), mask))
    return pieces


class DenseAttention:
    """`Attention` over rows of [clean | noised] tokens, flattened; without a noised half, plain causal attention."""

    def __init__(self, rows: int, length: int, window: int | None, noised: NoisedText | None = None) -> None:
        self.rows = rows
        self.length = length
        self.pieces = cut(length, window, noised)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape, group = query.shape, query.shape[1] // key.shape[1]
        query, key, value = (x.view(self.rows, -1, *x.shape[1:]).transpose(1, 2) for x in (query, key, value))
        key, value = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (key, value))
        clean, noised = [], []
        for piece in self.pieces:
            at, seen = slice(piece.start, piece.stop), slice(piece.first, piece.stop)
            keys, values = key[:, :, seen], value[:, :, seen]
            clean.append(F.scaled_dot_product_attention(query[:, :, at], keys, values, piece.clean))
            if piece.noised is not None:
                at = slice(self.length + piece.start, self.length + piece.stop)
                keys, values = torch.cat((keys, key[:, :, at]), dim=2), torch.cat((values, value[:, :, at]), dim=2)
                noised.append(F.scaled_dot_product_attention(query[:, :, at], keys, values, piece.noised))
        return torch.cat(clean + noised, dim=2).transpose(1, 2).reshape(shape)


@dataclass(frozen=True)
class TextLosses:
    """Mean cross-entropies in nats a token; `masked` is weighted, and zero for a purely causal model."""

    causal: Tensor
    masked: Tensor


def text_losses(decoder: Decoder, tokens: Tensor, noised: NoisedText | None, *, causal: bool = True) -> TextLosses:
    """tokens int64 [B, L + 1]: position i of the first L, which may be noised, predicts token i + 1.

    Without `causal` that loss is left out, and zero.
    """
    clean, targets = tokens[:, :-1], tokens[:, 1:]
    rows, length = clean.shape
    halves = [clean] if noised is None else [clean, noised.tokens]
    inputs = torch.cat(halves, dim=1)
    positions = torch.arange(length).repeat(rows, len(halves))
    attention = DenseAttention(rows, length, decoder.config.sliding_window, noised)
    hidden = decoder.hidden(inputs.reshape(-1), positions.reshape(-1), attention).view(*inputs.shape, -1)
    following = torch.zeros(())
    if causal:
        following = F.cross_entropy(decoder.logits(hidden[:, :length].flatten(0, 1)), targets.reshape(-1))
    if noised is None:
        return TextLosses(following, torch.zeros(()))
    wanted = noised.targets != -100
    each = F.cross_entropy(decoder.logits(hidden[:, length:][wanted]), noised.targets[wanted], reduction="none")
    weights = noised.weights[wanted]
    return TextLosses(following, (each * weights).sum() / weights.sum())
