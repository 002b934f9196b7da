"""How far heads guess right: acceptance by depth, and tokens a forward, on texts that the decoder writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from service.models.decoder import Decoder
from service.models.heads import Heads
from service.training.heads_objective import decoder_features, guesses
from service.training.text_data import even_windows
from service.training.text_sampling import DenseCache, forward

PROMPT_LENGTH = 64


@dataclass(frozen=True)
class HeadScore:
    """`acceptance`, a depth: how often a guess there was right when those before it were."""

    temperature: float
    acceptance: tuple[float, ...]
    tokens_per_forward: float


@torch.no_grad()
def write_coupled(
    target: Decoder, prompts: Tensor, length: int, temperature: float, generator: torch.Generator, usable: int
) -> tuple[Tensor, Tensor]:
    """Texts int64 [B, P + length] and the Gumbel numbers float32 [B, P + length, usable] that drew the token *behind* each
    position: argmax of logits / temperature + number."""
    rows, size = prompts.shape
    noise = torch.zeros(rows, size + length, usable)
    if temperature > 0:
        noise = -(torch.rand(noise.shape, generator=generator).clamp(min=1e-20).log().neg().log())
    cache, tokens = DenseCache(target, rows), [prompts]
    logits = forward(target, cache, prompts)[:, -1:]
    for at in range(size - 1, size + length - 1):
        tokens.append((logits[..., :usable] / (temperature or 1.0) + noise[:, at : at + 1]).argmax(-1))
        logits = forward(target, cache, tokens[-1])
    return torch.cat(tokens, dim=1), noise


@torch.no_grad()
def score_heads(
    head: Heads, target: Decoder, held_out: Tensor, temperature: float, depths: int, rows: int = 32, length: int = 192,
    usable: int = 256, seed: int = 0,
) -> HeadScore:  # fmt: skip
    """Drafts of `depths` tokens while the decoder continues `rows` prompts of the held-out text by `length` tokens.

    A guess is drawn with the numbers that draw the decoder's own token at its place, as the service does it.
    """
    generator = torch.Generator().manual_seed(seed)
    prompts = even_windows(held_out, rows, PROMPT_LENGTH - 1)
    texts, noise = write_coupled(target, prompts, length, temperature, generator, usable)
    features, _ = decoder_features(target, texts)
    right = [
        (logits[..., :usable] / (temperature or 1.0) + noise).argmax(-1)[:, :-1] == texts[:, 1:]
        for logits in guesses(head, target, texts, features, depths)
    ]
    tried, kept, forwards, written = [0] * depths, [0] * depths, 0, 0
    for row in range(rows):
        at = PROMPT_LENGTH - 1
        while at + depths < texts.shape[1] - 1:
            accepted = 0
            while accepted < depths:
                tried[accepted] += 1
                if not right[accepted][row, at + accepted + 1]:
                    break
                kept[accepted] += 1
                accepted += 1
            forwards, written, at = forwards + 1, written + accepted + 1, at + accepted + 1
    acceptance = tuple(k / max(1, t) for k, t in zip(kept, tried, strict=True))
    return HeadScore(temperature, acceptance, written / max(1, forwards))
