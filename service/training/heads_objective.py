"""What heads guess at every depth of a draft, for whole rows at once, and the loss that they learn from.

A draft of depth d at position i was begun at i - d: the head has the features of the decoder up to there, the true
tokens up to i (a draft goes on only while its guesses are right), and its own features in between. So it is trained as
it will be used (EAGLE-3, arXiv 2503.01840, "training-time test").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from service.models.decoder import Decoder
from service.models.heads import Heads, MedusaHeads
from service.training.block_diffusion_objective import DenseAttention

DEPTH_WEIGHT = 0.9


class UnrolledAttention:
    """`Attention` of one layer that is called once a depth: at depth d a position i sees the keys that the decoder's own
    features gave up to i - d + 1, and behind them those of the depths 2 to d at their positions."""

    def __init__(self, rows: int, length: int, window: int | None) -> None:
        self.rows = rows
        at = torch.arange(length)
        self._distance = at[:, None] - at
        # Before position 0 there are no features: only it itself, which does not count, may see what stands there.
        self._nothing = (at == 0) & (at[:, None] > 0)
        self._window = window or length
        self._keys: list[tuple[Tensor, Tensor]] = []

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape, group = query.shape, query.shape[1] // key.shape[1]
        query, key, value = (x.view(self.rows, -1, *x.shape[1:]).transpose(1, 2) for x in (query, key, value))
        self._keys.append(tuple(x.repeat_interleave(group, dim=1) for x in (key, value)))  # type: ignore[arg-type]
        depth, scale = len(self._keys), query.shape[-1] ** -0.5
        keys, values = self._keys[0]
        hidden = (self._distance < depth - 1) | (self._distance >= self._window) | self._nothing
        scores = (query @ keys.transpose(-1, -2)).float().masked_fill(hidden, float("-inf")) * scale
        own = [tuple(x.roll(depth - e, dims=2) for x in self._keys[e - 1]) for e in range(2, depth + 1)]
        columns = [(query * k).float().sum(-1, keepdim=True) * scale for k, _ in own]
        weights = torch.cat([scores, *columns], dim=-1).softmax(-1).to(value.dtype)
        length = keys.shape[2]
        output = weights[..., :length] @ values
        for column, (_, v) in enumerate(own):
            output = output + weights[..., length + column, None] * v
        return output.transpose(1, 2).reshape(shape)


@torch.no_grad()
def decoder_features(target: Decoder, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """tokens int64 [B, L] -> final normed states [B, L, d] and logits [B, L, V]."""
    rows, length = tokens.shape
    attention = DenseAttention(rows, length, target.config.sliding_window)
    features = target.hidden(tokens.reshape(-1), torch.arange(length).repeat(rows), attention)
    return features.view(rows, length, -1), target.logits(features).view(rows, length, -1)


def guesses(head: Heads, target: Decoder, tokens: Tensor, features: Tensor, depths: int) -> list[Tensor]:
    """For each depth d, from 1, logits float32 [B, L, V] of the token behind position i, as a draft that began at i - d
    guesses it; of no meaning where i < d. tokens int64 [B, L], features [B, L, d]."""
    rows, length = tokens.shape
    if isinstance(head, MedusaHeads):
        return [head.logits(features.roll(d, dims=1).flatten(0, 1), d - 1).view(rows, length, -1) for d in range(1, depths + 1)]
    decoder, positions = head.decoder(target), torch.arange(length).repeat(rows)
    attention = UnrolledAttention(rows, length, head.config.layers[0].window)
    embeddings = target.embed(tokens.reshape(-1))
    all_logits = []
    for _ in range(depths):
        before = F.pad(features[:, :-1], (0, 0, 1, 0)).flatten(0, 1)
        states = decoder.states(head.join(embeddings, before), positions, attention)
        all_logits.append(decoder.logits(states).view(rows, length, -1))
        features = states.view(rows, length, -1)
    return all_logits


@dataclass(frozen=True)
class HeadLosses:
    """`loss` is what is minimised. `agreement`, a depth: the share of positions at which a draw from the head and one from
    the decoder with the same random numbers would surely be allowed to agree: (1 - TV) / (1 + TV) of the two distributions
    (arXiv 2408.07978), the least that coupled draws reach."""

    loss: Tensor
    agreement: list[float]


def head_losses(head: Heads, target: Decoder, tokens: Tensor, depths: int) -> HeadLosses:
    """tokens int64 [B, L]. Of every depth, the divergence of the head's distribution from the decoder's, and their distance
    in total variation, which is what decides whether a guess is kept; the deeper, the less it counts."""
    features, logits = decoder_features(target, tokens)
    probabilities, total, weight, agreement = logits.softmax(-1), torch.zeros(()), 0.0, []
    for depth, guessed in enumerate(guesses(head, target, tokens, features, depths), 1):
        p, q = probabilities[:, depth:], guessed[:, depth:].float().log_softmax(-1)
        variation = 0.5 * (p - q.exp()).abs().sum(-1)
        divergence = (torch.special.xlogy(p, p) - p * q).sum(-1)
        total = total + DEPTH_WEIGHT ** (depth - 1) * (divergence + variation).mean()
        weight += DEPTH_WEIGHT ** (depth - 1)
        with torch.no_grad():
            agreement.append(((1 - variation) / (1 + variation)).mean().item())
    return HeadLosses(total / weight, agreement)
