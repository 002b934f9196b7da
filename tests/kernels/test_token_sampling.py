"""Drawing tokens: every row by its own parameters, and the right distribution."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kernels.cpu import library
from kernels.token_sampling import draw_tokens, reference


def draw(logits: torch.Tensor, uniform: torch.Tensor, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    rows = len(logits)
    fill = lambda value, dtype=torch.float32: torch.full((rows,), value, dtype=dtype)  # noqa: E731
    return draw_tokens(logits, fill(temperature), fill(top_k, torch.int64), fill(top_p), fill(min_p), uniform)


def _frequencies(logits: torch.Tensor, count: int = 40_000, **parameters: float) -> torch.Tensor:
    uniform = (torch.arange(count).double() + 0.5) / count  # every quantile once: no chance in the test
    tokens, _ = draw(logits.expand(count, -1).contiguous(), uniform, **parameters)
    return torch.bincount(tokens, minlength=len(logits)).double() / count


LOGITS = torch.log(torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2]))


def test_plain_sampling_is_the_softmax() -> None:
    torch.testing.assert_close(_frequencies(LOGITS), LOGITS.exp().double(), atol=1e-4, rtol=0)


def test_temperature_sharpens() -> None:
    expected = torch.softmax(LOGITS.double() / 0.5, 0)
    torch.testing.assert_close(_frequencies(LOGITS, temperature=0.5), expected, atol=1e-4, rtol=0)


def test_top_k_top_p_and_min_p_keep_what_they_should() -> None:
    assert (_frequencies(LOGITS, top_k=2) > 0).tolist() == [False, True, False, True, False]
    # 0.4 + 0.25 < 0.7, so the third largest is needed to reach it.
    assert (_frequencies(LOGITS, top_p=0.7) > 0).tolist() == [False, True, False, True, True]
    assert (_frequencies(LOGITS, top_p=0.01) > 0).tolist() == [False, True, False, False, False]
    assert (_frequencies(LOGITS, min_p=0.45) > 0).tolist() == [False, True, False, True, True]
    kept = _frequencies(LOGITS, top_k=3, top_p=0.8)
    torch.testing.assert_close(kept[1] / kept[3], torch.tensor(0.4 / 0.25, dtype=torch.float64), rtol=1e-3, atol=0)


def test_rows_do_not_mix() -> None:
    logits = torch.randn(6, 50)
    temperature = torch.tensor([0.0, 1.0, 0.7, 0.0, 1.5, 1.0])
    top_k = torch.tensor([0, 5, 0, 3, 1, 0])
    top_p = torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 0.9])
    min_p = torch.tensor([0.0, 0.1, 0.0, 0.0, 0.0, 0.0])
    uniform = torch.rand(6, dtype=torch.float64)
    together = draw_tokens(logits, temperature, top_k, top_p, min_p, uniform)
    for i in range(6):
        one = slice(i, i + 1)
        alone = draw_tokens(logits[one], temperature[one], top_k[one], top_p[one], min_p[one], uniform[one])
        assert alone[0] == together[0][i]
    assert together[0][0] == logits[0].argmax() and together[0][4] == logits[4].argmax()


def test_a_banned_token_is_never_drawn_and_confidence_is_plain() -> None:
    logits = LOGITS.clone()
    logits[1] = float("-inf")
    uniform = torch.tensor([1e-9, 0.3, 1 - 1e-9], dtype=torch.float64)
    tokens, confidence = draw(logits.expand(3, -1).contiguous(), uniform, temperature=0.3)
    assert 1 not in tokens.tolist()
    torch.testing.assert_close(confidence, torch.softmax(logits, 0)[tokens])


@pytest.mark.skipif(library() is None, reason="the CPU kernels need AVX-512 with bfloat16, and g++")
@pytest.mark.parametrize("vocabulary,spread", [(17, 1.0), (3000, 0.01), (3000, 3.0), (50_000, 1.5)])
def test_the_cpu_kernel_draws_what_the_reference_draws(vocabulary: int, spread: float) -> None:
    rows, generator = 120, torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(rows, vocabulary, generator=generator) * spread
    logits[:, 3] = float("-inf")
    logits[5, 7:] = logits[5, 6]  # equal weights count in the order of the vocabulary
    pick = lambda *values: torch.tensor(values)[torch.randint(len(values), (rows,), generator=generator)]  # noqa: E731
    columns = (
        pick(0.0, 0.3, 1.0, 1.0, 1.7), pick(0, 0, 1, 5, 200, 10**9), pick(1.0, 1.0, 0.95, 0.5, 1e-3), pick(0.0, 0.0, 0.05, 1.0),
        torch.rand(rows, generator=generator, dtype=torch.float64),
    )  # fmt: skip
    token, confidence = draw_tokens(logits, *columns, threads=2)
    expected, probability = reference.draw_tokens(logits, *columns)
    # A number that falls on the border between two tokens may round to either side.
    assert (token != expected).sum() <= 1
    same = token == expected
    torch.testing.assert_close(confidence[same], probability[same], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("draws", [draw_tokens, reference.draw_tokens])
@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-6])
def test_a_tiny_temperature_is_the_argmax(draws: Callable[..., tuple[torch.Tensor, torch.Tensor]], temperature: float) -> None:
    logits = torch.tensor([[float("-inf"), 1.0, 5.0, 2.0]])
    one = torch.ones(1)
    token, _ = draws(logits, one * temperature, torch.zeros(1, dtype=torch.int64), one, 0 * one, one.double() / 2)
    assert token.tolist() == [2]
