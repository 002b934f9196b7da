"""A text as one long row of tokens, and the random windows of it that a step trains on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

VALIDATION_FRACTION = 0.1


@dataclass(frozen=True)
class TextCorpus:
    """Tokens of a text, int64 [T]: the first nine tenths to train on, the last tenth, in order, to validate on."""

    training: Tensor
    validation: Tensor

    @classmethod
    def from_file(cls, path: Path, tokenizer: Tokenizer) -> TextCorpus:
        """Raises ValueError when the text is empty."""
        tokens = torch.tensor(tokenizer.encode(path.read_text(encoding="utf-8")).ids, dtype=torch.int64)
        if not len(tokens):
            raise ValueError(f"{path} holds no text")
        cut = len(tokens) - int(len(tokens) * VALIDATION_FRACTION)
        return cls(tokens[:cut], tokens[cut:])


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step: a function of (seed, step) alone, so that resuming needs no saved state."""
    return torch.Generator().manual_seed((seed << 32) + step)


def random_windows(tokens: Tensor, rows: int, length: int, generator: torch.Generator, start_token: int | None = None) -> Tensor:
    """int64 [rows, length + 1] windows of a text; one in ten begins with `start_token`, as an empty prompt does."""
    if len(tokens) <= length:
        raise ValueError(f"the text has {len(tokens)} tokens, a window needs {length + 1}")
    starts = torch.randint(len(tokens) - length, (rows, 1), generator=generator)
    windows = tokens[starts + torch.arange(length + 1)]
    if start_token is not None:
        windows[torch.rand(rows, generator=generator) < 0.1, 0] = start_token
    return windows


def windows_of_rows(texts: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    """int64 [rows, length + 1] windows of random ones of `texts`, int64 [N, T]."""
    picks = torch.randint(len(texts), (rows, 1), generator=generator)
    starts = torch.randint(texts.shape[1] - length, (rows, 1), generator=generator)
    return texts[picks, starts + torch.arange(length + 1)]


def even_windows(tokens: Tensor, rows: int, length: int) -> Tensor:
    """int64 [rows, length + 1] windows spread evenly over a text: a fixed sample for validation while training.

    Raises ValueError where the text is no longer than `length`.
    """
    if len(tokens) <= length:
        raise ValueError(f"the text that is kept for validation has {len(tokens)} tokens, a window needs {length + 1}")
    starts = torch.linspace(0, len(tokens) - length - 1, rows).long()[:, None]
    return tokens[starts + torch.arange(length + 1)]
