"""Drafters for tests: what they guess is set from outside, so that right guesses, wrong ones and any mix can be had."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import pytest

from service.procedures.prompt_lookup import PromptLookup

Guess = Callable[[Sequence[int], int], tuple[int, ...]]


def install(monkeypatch: pytest.MonkeyPatch, guess: Guess) -> None:
    """In place of what the drafter ngram would guess."""
    monkeypatch.setattr(PromptLookup, "guess", lambda self, tokens, count: guess(tokens, count))


def oracle(texts: Iterable[Sequence[int]], right: float, vocabulary: int) -> Guess:
    """Guesses the known continuation of a text that begins alike, each token right with that probability."""
    known = [list(text) for text in texts]

    def guess(tokens: Sequence[int], count: int) -> tuple[int, ...]:
        rng = random.Random(repr((tuple(tokens), right)))
        begun = list(tokens)
        match = next((text for text in known if text[: len(begun)] == begun), begun)
        following = match[len(begun) : len(begun) + count]
        following += [rng.randrange(vocabulary) for _ in range(count - len(following))]
        return tuple(token if rng.random() < right else rng.randrange(vocabulary) for token in following)

    return guess
