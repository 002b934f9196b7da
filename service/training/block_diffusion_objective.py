"""Next-token and block-diffusion losses of one set of weights, in one forward (BD3-LM, arXiv 2503.09573).

A training row is [clean | noised]. The clean half of L tokens is an ordinary causal language model. The noised half
repeats a stretch of M of them, cut into blocks in which some tokens are masked; a block sees itself in both directions
and the clean tokens before it, and its masked positions predict themselves. Clean keys and values are therefore always
causal ones: at serving time both axes share one cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from service.models.decoder import Decoder


@dataclass(frozen=True)
class NoisedStretch:
    """The noised half of a batch; B rows, M positions.

    tokens: int64 [B, M], some of them the mask token. positions: int64 [B, M], those of the clean counterparts.
    targets: int64 [B, M], the clean tokens, -100 where nothing is masked. block_starts: int64 [B, M], the position at
    which the block of each token begins.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    block_starts: Tensor


def noise_stretch(
    clean: Tensor,
    length: int,
    block_lengths: tuple[int, ...],
    mask_token: int,
    generator: torch.Generator,
    fully_masked: float = 0.25,
) -> NoisedStretch:
    """Mask a random stretch of each row of `clean` (int64 [B, L]).

    The stretch starts at a multiple of the longest block; the block length is drawn per row. Each block has its own
    masking rate, uniform in (0, 1], or 1 with probability `fully_masked`; at least one of its tokens is masked.
    """
    rows, total = clean.shape
    longest = max(block_lengths)
    if length % longest or any(longest % block for block in block_lengths) or length > total:
        raise ValueError(f"a stretch of {length} in {total} tokens cannot be cut into blocks of {block_lengths}")
    places = (total - length) // longest + 1
    starts = torch.randint(places, (rows, 1), generator=generator) * longest
    offsets = torch.arange(length)
    positions = starts + offsets
    picks = torch.randint(len(block_lengths), (rows, 1), generator=generator)
    blocks = torch.tensor(block_lengths)[picks]
    block_indices = offsets // blocks
    rates = 1.0 - torch.rand((rows, length), generator=generator)
    rates[torch.rand((rows, length), generator=generator) < fully_masked] = 1.0
    rates = rates.gather(1, block_indices)
    draws = torch.rand((rows, length), generator=generator)
    lowest = torch.full((rows, length), 2.0).scatter_reduce(1, block_indices, draws, "amin")
    masked = (draws < rates) | (draws == lowest.gather(1, block_indices))
    targets = clean.gather(1, positions)
    return NoisedStretch(
        tokens=torch.where(masked, mask_token, targets),
        positions=positions,
        targets=torch.where(masked, targets, -100),
        block_starts=starts + block_indices * blocks,
    )


def causal_mask(length: int, window: int | None) -> Tensor:
    """bool [L, L], true where query i may see key j: j <= i and, with a window, i - j < window."""
    index = torch.arange(length)
    distance = index[:, None] - index
    return (distance >= 0) & (distance < (window or length))


def noised_mask(stretch: NoisedStretch, clean_length: int, window: int | None) -> Tensor:
    """bool [B, M, L + M]: the clean tokens before the block, within the window, and the block itself."""
    queries = stretch.positions[:, :, None]
    starts = stretch.block_starts
    clean = torch.arange(clean_length)
    before = (clean < starts[:, :, None]) & (queries - clean < (window or clean_length + 1))
    return torch.cat((before, starts[:, :, None] == starts[:, None, :]), dim=-1)


class DenseAttention:
    """`Attention` over rows of [clean | noised] tokens, flattened; without a stretch, plain causal attention."""

    def __init__(self, rows: int, clean_length: int, window: int | None, stretch: NoisedStretch | None = None) -> None:
        self.rows = rows
        self.clean_length = clean_length
        self.clean_mask = causal_mask(clean_length, window)
        self.noised_mask = None if stretch is None else noised_mask(stretch, clean_length, window)[:, None]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape = query.shape
        query, key, value = (x.view(self.rows, -1, *x.shape[1:]).transpose(1, 2) for x in (query, key, value))
        grouped = query.shape[1] != key.shape[1]
        clean = self.clean_length
        outputs = [
            F.scaled_dot_product_attention(
                query[:, :, :clean], key[:, :, :clean], value[:, :, :clean], self.clean_mask, enable_gqa=grouped
            )
        ]
        if self.noised_mask is not None:
            outputs.append(F.scaled_dot_product_attention(query[:, :, clean:], key, value, self.noised_mask, enable_gqa=grouped))
        return torch.cat(outputs, dim=2).transpose(1, 2).reshape(shape)


@dataclass(frozen=True)
class TextLosses:
    """Mean cross-entropies in nats a token; `masked` is zero for a purely causal model."""

    causal: Tensor
    masked: Tensor


def text_losses(decoder: Decoder, tokens: Tensor, stretch: NoisedStretch | None) -> TextLosses:
    """tokens int64 [B, L + 1]: position i of the first L predicts token i + 1; the stretch lies in the first L."""
    clean, targets = tokens[:, :-1], tokens[:, 1:]
    rows, length = clean.shape
    positions = torch.arange(length).expand(rows, -1)
    attention = DenseAttention(rows, length, decoder.config.sliding_window, stretch)
    inputs = clean
    if stretch is not None:
        inputs = torch.cat((clean, stretch.tokens), dim=1)
        positions = torch.cat((positions, stretch.positions), dim=1)
    hidden = decoder.hidden(inputs.reshape(-1), positions.reshape(-1), attention).view(rows, inputs.shape[1], -1)
    causal = F.cross_entropy(decoder.logits(hidden[:, :length].flatten(0, 1)), targets.reshape(-1))
    if stretch is None:
        return TextLosses(causal, torch.zeros(()))
    wanted = stretch.targets != -100
    masked = F.cross_entropy(decoder.logits(hidden[:, length:][wanted]), stretch.targets[wanted])
    return TextLosses(causal, masked)
