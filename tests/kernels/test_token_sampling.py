"""Drawing tokens: every row by its own parameters, and the right distribution."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kernels.cpu import library
from kernels.philox import philox
from kernels.token_sampling import draw_tokens, reference

PURPOSE = 1
Draw = Callable[..., tuple[torch.Tensor, torch.Tensor]]
WAYS = pytest.mark.parametrize("way", [draw_tokens, reference.draw_tokens], ids=["dispatched", "reference"])


def draw(logits: torch.Tensor, seeds: torch.Tensor, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, way: Draw = draw_tokens):
    rows = len(logits)
    fill = lambda value, dtype=torch.float32: torch.full((rows,), value, dtype=dtype)  # noqa: E731
    filters = fill(temperature), fill(top_k, torch.int64), fill(top_p), fill(min_p)
    return way(logits, *filters, seeds, fill(7, torch.int64), PURPOSE)


def counted(logits: torch.Tensor, count: int = 40_000, **parameters: float) -> torch.Tensor:
    tokens, _ = draw(logits.expand(count, -1).contiguous(), torch.arange(count), **parameters)
    return torch.bincount(tokens, minlength=len(logits)).double()


def assert_drawn_from(counts: torch.Tensor, expected: torch.Tensor) -> None:
    """Pearson's chi-square, at a level that five standard deviations would miss."""
    assert (counts[expected == 0] == 0).all()
    mean = counts.sum() * expected[expected > 0]
    degrees = len(mean) - 1
    statistic = ((counts[expected > 0] - mean) ** 2 / mean).sum()
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5 + 10


LOGITS = torch.log(torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2]))


@WAYS
def test_plain_sampling_is_the_softmax(way: Draw) -> None:
    assert_drawn_from(counted(LOGITS, way=way), LOGITS.exp().double())


@WAYS
def test_temperature_sharpens(way: Draw) -> None:
    assert_drawn_from(counted(LOGITS, temperature=0.5, way=way), torch.softmax(LOGITS.double() / 0.5, 0))


@WAYS
@pytest.mark.parametrize("size,temperature", [(100, 1.0), (300, 1.3)])
def test_a_vocabulary_of_several_vectors_is_drawn_from_its_softmax(size: int, temperature: float, way: Draw) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 2.0
    assert_drawn_from(counted(logits, temperature=temperature, way=way), torch.softmax(logits.double() / temperature, 0))


@WAYS
def test_top_k_top_p_and_min_p_keep_what_they_should(way: Draw) -> None:
    p = LOGITS.exp().double()
    for parameters, kept in (
        ({"top_k": 2}, [1, 3]),
        ({"top_p": 0.7}, [1, 3, 4]),  # 0.4 + 0.25 < 0.7, so the third largest is needed to reach it
        ({"top_p": 0.01}, [1]),
        ({"min_p": 0.45}, [1, 3, 4]),
        ({"top_k": 3, "top_p": 0.7}, [1, 3]),  # of the three that are left, two are more than 0.7
    ):
        expected = torch.zeros(5, dtype=torch.float64)
        expected[kept] = p[kept] / p[kept].sum()
        assert_drawn_from(counted(LOGITS, way=way, **parameters), expected)


def test_rows_do_not_mix() -> None:
    logits = torch.randn(6, 50)
    temperature = torch.tensor([0.0, 1.0, 0.7, 0.0, 1.5, 1.0])
    top_k = torch.tensor([0, 5, 0, 3, 1, 0])
    top_p = torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 0.9])
    min_p = torch.tensor([0.0, 0.1, 0.0, 0.0, 0.0, 0.0])
    seeds, numbers = torch.arange(6), torch.arange(6) * 3
    together = draw_tokens(logits, temperature, top_k, top_p, min_p, seeds, numbers, PURPOSE)
    for i in range(6):
        one = slice(i, i + 1)
        alone = draw_tokens(
            logits[one], temperature[one], top_k[one], top_p[one], min_p[one], seeds[one], numbers[one], PURPOSE
        )
        assert alone[0] == together[0][i]
    assert together[0][0] == logits[0].argmax() and together[0][4] == logits[4].argmax()


def test_the_random_number_of_a_token_is_where_it_is_said_to_be() -> None:
    seeds, numbers = torch.tensor([5, -9]), torch.tensor([3 | (2 << 32), 1])
    numbers_of = reference.gumbel(seeds, numbers, PURPOSE, 200)
    for row in range(2):
        for token in (0, 15, 16, 63, 64, 130, 199):
            number = int(numbers[row])
            counter = torch.tensor([[token // 64 * 16 + token % 16, number & 0xFFFFFFFF, PURPOSE, number >> 32]])
            word = philox(seeds[row : row + 1], counter)[0, token // 16 % 4]
            uniform = (word.double() + 0.5) * 2.0**-32
            assert numbers_of[row, token] == -torch.log(-torch.log(uniform))


@WAYS
def test_two_models_with_the_same_numbers_agree_as_often_as_coupling_promises(way: Draw) -> None:
    p, q = torch.tensor([0.5, 0.3, 0.1, 0.1]), torch.tensor([0.4, 0.3, 0.25, 0.05])
    distance = float((p - q).abs().sum()) / 2
    rows, seeds = 20_000, torch.arange(20_000)
    one, other = (draw(torch.log(x).expand(rows, -1).contiguous(), seeds, way=way)[0] for x in (p, q))
    agreed = float((one == other).double().mean())
    assert (1 - distance) / (1 + distance) - 0.01 < agreed < 1 - distance + 0.01


def test_a_banned_token_is_never_drawn_and_confidence_is_plain() -> None:
    logits = LOGITS.clone()
    logits[1] = float("-inf")
    tokens, confidence = draw(logits.expand(3000, -1).contiguous(), torch.arange(3000), temperature=0.3)
    assert 1 not in tokens.tolist()
    torch.testing.assert_close(confidence, torch.softmax(logits, 0)[tokens])


@pytest.mark.skipif(library() is None, reason="the CPU kernels need AVX-512 with bfloat16, and g++")
@pytest.mark.parametrize("vocabulary,spread", [(17, 1.0), (3000, 0.01), (3000, 3.0), (50_000, 1.5), (50_001, 6.0)])
def test_the_cpu_kernel_draws_what_the_reference_draws(vocabulary: int, spread: float) -> None:
    rows, generator = 120, torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(rows, vocabulary, generator=generator) * spread
    logits[:, 3] = float("-inf")
    logits[5, 7:] = logits[5, 6]  # equal weights count in the order of the vocabulary
    logits[6] = float("-inf")
    pick = lambda *values: torch.tensor(values)[torch.randint(len(values), (rows,), generator=generator)]  # noqa: E731
    columns = (
        pick(0.0, 0.3, 1.0, 1.0, 1.7), pick(0, 0, 1, 5, 200, 10**9), pick(1.0, 1.0, 0.95, 0.5, 1e-3), pick(0.0, 0.0, 0.05, 1.0),
        torch.randint(-(2**62), 2**62, (rows,), generator=generator), torch.randint(2**40, (rows,), generator=generator), PURPOSE,
    )  # fmt: skip
    token, confidence = draw_tokens(logits, *columns, threads=2)
    expected, probability = reference.draw_tokens(logits, *columns)
    # What a filter keeps may differ where a cumulative probability falls on its border, and what is drawn then with it.
    assert (token != expected).sum() <= 1
    same = token == expected
    torch.testing.assert_close(confidence[same], probability[same], atol=1e-6, rtol=1e-4, equal_nan=True)


@pytest.mark.skipif(library() is None, reason="the CPU kernels need AVX-512 with bfloat16, and g++")
@pytest.mark.parametrize("vocabulary", [5, 64, 65, 264, 9_999])
def test_without_filters_the_cpu_kernel_and_the_reference_never_differ(vocabulary: int) -> None:
    rows = 2_000_000 // max(vocabulary, 500)
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 2
    zeros, one = torch.zeros(rows, dtype=torch.int64), torch.ones(rows)
    columns = one * 0.9, zeros, one, zeros.float(), torch.arange(rows), torch.arange(rows) << 20, PURPOSE
    assert torch.equal(draw_tokens(logits, *columns)[0], reference.draw_tokens(logits, *columns)[0])


@WAYS
@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-6])
def test_a_tiny_temperature_is_the_argmax(way: Draw, temperature: float) -> None:
    logits = torch.tensor([[float("-inf"), 1.0, 5.0, 2.0]])
    assert draw(logits, torch.zeros(1, dtype=torch.int64), temperature, way=way)[0].tolist() == [2]
