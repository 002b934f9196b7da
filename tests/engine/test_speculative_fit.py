"""Goodness of fit of verified drafting on a small vocabulary, and that wrong rules of acceptance do not pass it."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.engine import request
from service.engine.lane import Lane, Limits
from service.engine.loop import Engine, Served
from service.engine.messages import ModelCard, Sampling, Submit, TextWork
from service.procedures.speculative import Speculative
from service.procedures.types import Reading, TokenState
from service.workers.block_pool import BlockPool
from service.workers.threads import Threads
from service.workers.token_reader import TokenReader
from service.workers.types import TokenMove, TokenOutcome
from tests.engine.driving import UNLIMITED, finish_all
from tests.engine.guessing import install
from tests.few import few

VOCABULARY, LENGTH, SEEDS = 5, 3, 2500
TABLE = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(11)) * 1.3
CASES: dict[str, dict[str, float]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top-k": {"temperature": 1.4, "top_k": 3},
    "top-p": {"top_p": 0.8},
    "penalties": {"repetition_penalty": 1.5, "presence_penalty": 0.4, "frequency_penalty": 0.7},
    "all": {"temperature": 1.5, "top_k": 4, "top_p": 0.9, "min_p": 0.05, "presence_penalty": 0.9},
}


class TableWorker:
    """The network is a table: what follows hangs on the last token alone. Tokens are drawn as the service draws them."""

    def __init__(self) -> None:
        self._reader = TokenReader((), torch.device("cpu"), Threads(1, 1))

    def run(self, moves: Sequence[TokenMove]) -> list[TokenOutcome]:
        tokens = [move.rows[-1].tokens[offset] for move in moves for offset in move.rows[-1].wanted]
        return self._reader.read(moves, TABLE[torch.tensor(tokens)].clone()).outcomes()


def frequencies(case: str) -> Counter[tuple[int, ...]]:
    pool = BlockPool(4096, 8)
    card = ModelCard("text", "text", "", [], ["speculative"], "speculative", 0, VOCABULARY, 100, drafters=["ngram"])
    engine = Engine([Served(card, Lane(pool, Limits(256, 4096, 256, UNLIMITED)), TableWorker())])
    work = TextWork([1, 2], LENGTH, Sampling(**CASES[case]))  # type: ignore[arg-type]
    parameters = {"draft_tokens": 4, "ngram_min": 1, "adaptive": False}
    outputs = finish_all(engine, [Submit(f"{i}", "text", "speculative", parameters, i, work, 0.0) for i in range(SEEDS)])
    assert not outputs.failed and sum(done.usage.drafted_tokens or 0 for done in outputs.done.values()) > SEEDS
    return Counter(tuple(outputs.tokens[f"{i}"]) for i in range(SEEDS))


def probabilities(seen: list[int], case: str) -> NDArray[np.float64]:
    """Of the next token, from the definitions, in numpy and one token at a time."""
    sampling = Sampling(**CASES[case])  # type: ignore[arg-type]
    logits = TABLE[seen[-1]].double().numpy().copy()
    for token in set(seen):
        count = seen[2:].count(token)
        logits[token] *= 1 / sampling.repetition_penalty if logits[token] > 0 else sampling.repetition_penalty
        logits[token] -= sampling.frequency_penalty * count + sampling.presence_penalty * (count > 0)
    p = np.exp((logits - logits.max()) / sampling.temperature)
    p /= p.sum()
    order = list(np.argsort(-p))[: sampling.top_k or VOCABULARY]
    share, kept = np.cumsum(p[order]) / p[order].sum(), []
    for rank, token in enumerate(order):
        if rank == 0 or share[rank - 1] < sampling.top_p:
            kept.append(token)
    out = np.zeros(VOCABULARY)
    out[kept] = p[kept] / p[kept].sum()
    out[out < sampling.min_p * out.max()] = 0.0
    return out / out.sum()


def excess(counts: Counter[tuple[int, ...]], case: str) -> float:
    """Pearson's chi-square over all texts, in standard deviations above what it should be; texts that are rarer than five
    in all count as one. Infinite where there is a text that cannot be."""
    expected: dict[tuple[int, ...], float] = {}
    for text in itertools.product(range(VOCABULARY), repeat=LENGTH):
        p = 1.0
        for place in range(LENGTH):
            p *= float(probabilities([1, 2, *text[:place]], case)[text[place]])
        expected[text] = p * SEEDS
    if any(expected[text] == 0.0 for text in counts):
        return float("inf")
    common = [text for text, mean in expected.items() if mean >= 5.0]
    cells = [(counts[text], expected[text]) for text in common]
    rest = SEEDS - sum(mean for _, mean in cells)
    if rest >= 5.0:
        cells.append((SEEDS - sum(count for count, _ in cells), rest))
    degrees = len(cells) - 1
    return (sum((count - mean) ** 2 / mean for count, mean in cells) - degrees) / (2 * degrees) ** 0.5


@pytest.fixture(autouse=True)
def drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses that are often right: at every place one of the likely tokens."""

    def guess(tokens: Sequence[int], count: int) -> tuple[int, ...]:
        rng, guesses = random.Random(sum(tokens)), list(tokens)
        for _ in range(count):
            guesses.append(int(TABLE[guesses[-1]].topk(2).indices[rng.randrange(2)]))
        return tuple(guesses[len(tokens) :])

    install(monkeypatch, guess)


@pytest.mark.parametrize("case", few(CASES, "plain", "all"))
def test_texts_have_the_probabilities_of_the_model(case: str) -> None:
    assert abs(excess(frequencies(case), case)) < 4.5


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Where wrong rules are tried the last token is always computed anew: some leave nothing that the cache lacks."""
    monkeypatch.setattr(request, "_agreeing", lambda computed, committed: max(0, len(committed) - 1))
    return monkeypatch


def _always(draft: Any, drawn: Sequence[int]) -> tuple[int, ...]:
    """Wrong: the first guess is likely, so it is taken."""
    return (0,) if draft.tokens else ()


def _last_counts(draft: Any, drawn: Sequence[int]) -> tuple[int, ...]:
    """Wrong: guesses are compared with the draws behind them, not with those before them."""
    path = []
    for i, token in enumerate(draft.tokens):
        if drawn[i + 1] != token:
            break
        path.append(i)
    return tuple(path)


def _one_more(draft: Any, drawn: Sequence[int]) -> tuple[int, ...]:
    """Wrong: a second try, with the draw of the next position, for a guess that was not drawn."""
    return (0,) if draft.tokens and draft.tokens[0] in drawn[:2] else ()


@pytest.mark.parametrize("rule", few([_always, _last_counts, _one_more], _one_more))
def test_a_wrong_rule_of_acceptance_does_not_pass(rule: Any, wrong: pytest.MonkeyPatch) -> None:
    wrong.setattr("service.procedures.speculative.accepted", rule)
    assert excess(frequencies("plain"), "plain") > 20


def test_acceptance_by_probability_without_taking_the_guess_out_of_the_rest_does_not_pass(wrong: pytest.MonkeyPatch) -> None:
    def fold(self: Speculative, state: TokenState, readings: list[Reading]) -> None:
        """Wrong: after a rejection the rule needs a draw from the rest, not from all."""
        token = readings[0].token
        if len(readings) > 1:
            assert state.draft is not None
            guess = state.draft.tokens[0]
            p = float(torch.softmax(TABLE[state.tokens[-1]].double(), 0)[guess])
            if random.Random(repr((tuple(state.tokens), token, readings[1].token))).random() < p:
                token = guess
        state.tokens.append(token)

    wrong.setattr(Speculative, "fold", fold)
    assert excess(frequencies("plain"), "plain") > 20


def test_a_guess_that_was_drawn_and_is_rejected_all_the_same_does_not_pass(wrong: pytest.MonkeyPatch) -> None:
    def fold(self: Speculative, state: TokenState, readings: list[Reading]) -> None:
        """Wrong: the guess is rejected half of the time although it was drawn, and then never comes."""
        token = readings[0].token
        if len(readings) > 1 and state.draft is not None and token == state.draft.tokens[0] and readings[1].token % 2:
            token = (token + 1) % VOCABULARY
        state.tokens.append(token)

    wrong.setattr(Speculative, "fold", fold)
    assert excess(frequencies("plain"), "plain") > 20
