"""Drafters for tests: what they guess is set from outside, so that right guesses, wrong ones and any mix can be had."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence

import pytest

from service.procedures.prompt_lookup import PromptLookup
from service.procedures.types import Draft

Guess = Callable[[Sequence[int], int], tuple[int, ...] | Draft]


def install(monkeypatch: pytest.MonkeyPatch, guess: Guess) -> None:
    """In place of what the drafter ngram would guess."""

    def guessed(self: PromptLookup, tokens: Sequence[int], count: int) -> Draft:
        made = guess(tokens, count)
        return made if isinstance(made, Draft) else Draft.chain(made)

    monkeypatch.setattr(PromptLookup, "guess", guessed)


def branching(oracle: Guess, vocabulary: Collection[int], most: int) -> Guess:
    """The oracle's guesses in a random tree of up to `most`: now and then what it guesses stands beside others."""

    def guess(tokens: Sequence[int], count: int) -> Draft:
        made = oracle(tokens, count)
        assert not isinstance(made, Draft)
        rng = random.Random(repr(tuple(tokens)))
        guesses: list[int] = []
        parents: list[int] = []
        at = -1
        for token in made:
            beside = rng.sample(sorted(set(vocabulary) - {token}), rng.randrange(4))
            beside.insert(rng.randrange(len(beside) + 1), token)
            guesses += beside
            parents += [at] * len(beside)
            at = len(guesses) - len(beside) + beside.index(token)
            if rng.random() < 0.3:
                guesses.append(rng.choice(sorted(vocabulary)))
                parents.append(rng.randrange(-1, len(parents)))
        return Draft(tuple(guesses[:most]), tuple(parents[:most]))

    return guess


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
