"""Trees of guesses in a worker: a branch is computed as if it were the text, and what was right stays in the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.procedures.drafts import accepted
from service.procedures.types import Draft, TokenRow
from service.workers.block_pool import BlockPool
from service.workers.threads import Threads
from service.workers.token_worker import TokenWorker
from service.workers.types import Draws, RowError, TokenMove
from tests import trees
from tests.few import few
from tests.workers.test_forward import CPU, TOKENS, causal, model, packed

BLOCKS = list(range(24))


def worker_of(folder: Path, variant: str, **options: bool) -> TokenWorker:
    return TokenWorker(model(folder, variant).network, BlockPool(32, 4), CPU, Threads(1, 1), **options)


def drawn(worker: TokenWorker, row: TokenRow, draws: Draws) -> list[int]:
    (outcome,) = worker.run([TokenMove((row,), BLOCKS, draws)])
    assert not isinstance(outcome, RowError)
    return [reading.token for reading in outcome.readings]


@pytest.mark.parametrize("variant", few(["qwen3", "gemma2", "mistral"], "gemma2"))
@torch.inference_mode()
def test_a_branch_has_the_logits_of_the_text_that_it_is(tmp_path: Path, way: str, variant: str) -> None:
    row = TokenRow.tree(TOKENS[10], 10, trees.random_draft(2, 12), 0)
    other = causal(TOKENS[::-1])
    for exact in (False, True):
        forward = worker_of(tmp_path, variant, batch_invariant=exact)._forward
        forward(packed(causal(TOKENS[:10])))
        found = forward(packed(row, other)).logits
        for offset in range(len(row.tokens)):
            text = TOKENS[:10] + tuple(row.tokens[i] for i in trees.branch(row, offset))
            lone = worker_of(tmp_path, variant, batch_invariant=exact)._forward
            expected = [lone(packed(causal(text[i : i + 1], i))).logits for i in range(len(text))][-1][0]
            torch.testing.assert_close(found[offset], expected, atol=1e-4, rtol=1e-4)
            if exact or way == "kernel":
                assert torch.equal(found[offset], expected)


@pytest.mark.parametrize("variant", ["qwen3", "gemma2"])
@pytest.mark.parametrize("right_first", [True, False])
def test_what_was_right_is_cached_at_its_positions(tmp_path: Path, way: str, variant: str, right_first: bool) -> None:
    draws, text = Draws(5, 1.0), list(TOKENS)
    plain = worker_of(tmp_path, variant, batch_invariant=True)
    for _ in range(12):
        start = len(text) - 1 if len(text) > len(TOKENS) else 0
        row = TokenRow.tree(text[-1], start, Draft((), ()), 0) if start else causal(tuple(text))
        text.append(drawn(plain, row, draws)[-1])
    right = text[len(TOKENS) + 1 : len(TOKENS) + 6]
    wrong = [(token + 1) % 50 for token in right]
    tokens = right + wrong if right_first else wrong + right
    draft = Draft(tuple(tokens), (-1, 0, 1, 2, 3, -1, 5, 6, 7, 8))
    worker = worker_of(tmp_path, variant, batch_invariant=True)
    drawn(worker, causal(TOKENS), draws)
    readings = drawn(worker, TokenRow.tree(text[len(TOKENS)], len(TOKENS), draft, 3, 9), draws)
    path = accepted(draft, readings)
    assert [draft.tokens[i] for i in path] == right and readings[1 + path[-1]] == text[len(TOKENS) + 6]
    for at in range(len(TOKENS) + 6, len(text) - 1):
        assert drawn(worker, TokenRow.tree(text[at], at, Draft((), ()), 0), draws) == [text[at + 1]]
    computed = plain.cache.store.flatten(1, 2)[:, : len(text) - 1], worker.cache.store.flatten(1, 2)[:, : len(text) - 1]
    assert torch.equal(*computed)


def test_a_tree_loses_its_last_guesses_and_the_masks_behind_them() -> None:
    draft = trees.random_draft(4, 9)
    row = TokenRow.tree(7, 20, draft, 3, 99)
    assert row.draft() == draft and row.masks == 3 and row.with_drafts(9) is row
    for count in range(9):
        assert row.with_drafts(count) == TokenRow.tree(7, 20, draft.head(count), 3, 99)
    assert [row.tokens[i] for i in row.wanted] == [7, *draft.tokens, *[99] * 20]
