"""Penalties, biases and grammar masks over a whole batch, against transformers' processors and plain loops."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from kernels.token_sampling import add_bias, apply_bitmask, penalise, plain_logprobs

ROWS, VOCABULARY = 7, 101
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="tensors of a CPU need Triton's interpreter")


@pytest.fixture(autouse=True, params=["torch", pytest.param("triton", marks=WITHOUT_GPU)])
def version(request: pytest.FixtureRequest) -> None:
    if request.param == "triton":
        request.getfixturevalue("triton_preferred")


def _entries(seen: list[dict[int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    flat = [(row, token, count) for row, counts in enumerate(seen) for token, count in counts.items()]
    row, token, count = zip(*flat, strict=True)
    return torch.tensor(row), torch.tensor(token), torch.tensor(count, dtype=torch.float32)


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_of_penalties_is_transformers_repetition_penalty_and_openais_formula(seed: int) -> None:
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(ROWS, VOCABULARY, generator=generator)
    seen = [{t: rng.randrange(4) for t in rng.sample(range(VOCABULARY), rng.randrange(1, 30))} for _ in range(ROWS)]
    repetition = torch.rand(ROWS, generator=generator) + 0.6
    presence, frequency = (4 * torch.rand(ROWS, generator=generator) - 2 for _ in range(2))
    expected = torch.empty_like(logits)
    for row in range(ROWS):
        tokens = torch.tensor([list(seen[row])])
        processor = RepetitionPenaltyLogitsProcessor(penalty=float(repetition[row]))
        one = processor(tokens, logits[row : row + 1].clone())[0]
        for token, count in seen[row].items():
            one[token] -= frequency[row] * count + presence[row] * (count > 0)
        expected[row] = one
    row, token, count = _entries(seen)
    actual = logits.clone()
    penalise(actual, row, token, count, repetition[row], presence[row], frequency[row])
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_rows_without_an_entry_are_not_touched() -> None:
    logits = torch.randn(3, VOCABULARY)
    changed = logits.clone()
    two = torch.tensor([1, 1])
    add_bias(changed, two, torch.tensor([4, 9]), torch.tensor([2.5, float("-inf")]))
    assert torch.equal(changed[[0, 2]], logits[[0, 2]])
    assert changed[1, 4] == logits[1, 4] + 2.5 and changed[1, 9] == float("-inf")
    assert torch.equal(changed[1, 10:], logits[1, 10:])


@pytest.mark.parametrize("vocabulary", [8, 31, 101, 264])
def test_a_bitmask_leaves_exactly_its_tokens(vocabulary: int) -> None:
    rng = random.Random(vocabulary)
    allowed = [set(rng.sample(range(vocabulary), 5)) for _ in range(2)]
    words = -(-vocabulary // 32) * 4
    mask = torch.zeros(2, words, dtype=torch.uint8)
    for i, tokens in enumerate(allowed):
        for token in tokens:
            mask[i, token // 8] |= 1 << token % 8
    logits = torch.randn(4, vocabulary)
    masked = logits.clone()
    apply_bitmask(masked, torch.tensor([1, 3]), mask)
    assert torch.equal(masked[[0, 2]], logits[[0, 2]])
    for i, row in enumerate((1, 3)):
        left = set(torch.isfinite(masked[row]).nonzero().flatten().tolist())
        assert left == allowed[i] and all(masked[row, t] == logits[row, t] for t in left)


def test_log_probabilities_are_of_the_unchanged_logits_and_name_no_token_that_is_none() -> None:
    logits = torch.randn(3, 20)
    never = torch.tensor([int(logits[2].argmax())])
    own, top, tokens = plain_logprobs(logits, torch.tensor([2, 0]), torch.tensor([7, 3]), 4, never)
    expected = torch.log_softmax(logits, -1)
    torch.testing.assert_close(own, torch.stack((expected[2, 7], expected[0, 3])))
    assert int(never) not in tokens[0].tolist()
    order = [t for t in expected[2].argsort(descending=True).tolist() if t != int(never)]
    assert tokens[0].tolist() == order[:4]
    torch.testing.assert_close(top[1], expected[0][tokens[1]])
