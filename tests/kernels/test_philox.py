"""Philox4x32-10 against its known answers, and what the service relies on of the numbers drawn from it."""

from __future__ import annotations

import math

import pytest
import torch

from kernels.philox import normal, philox, uniform, words

KNOWN_ANSWERS = [  # counter, key, output: Random123, tests/kat_vectors, philox4x32 10
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def parse(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def signed(low: int, high: int) -> int:
    """The int64 with these words."""
    value = high << 32 | low
    return value - (1 << 64) if value >> 63 else value


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    seed = torch.tensor([signed(*parse(key))])
    assert philox(seed, torch.tensor([parse(counter)])).tolist() == [parse(expected)]


def test_known_answers_hold_in_a_batch_with_inner_dimensions() -> None:
    seeds = torch.tensor([signed(*parse(key)) for _, key, _ in KNOWN_ANSWERS])
    counters = torch.tensor([[[parse(counter)] * 2] * 3 for counter, _, _ in KNOWN_ANSWERS])
    expected = torch.tensor([[[parse(answer)] * 2] * 3 for _, _, answer in KNOWN_ANSWERS])
    assert torch.equal(philox(seeds, counters), expected)


def test_words_follow_the_documented_counters() -> None:
    draw = (5 << 32) + 7
    drawn = words(torch.tensor([99]), torch.tensor([draw]), purpose=3, size=6)
    counters = torch.tensor([[[0, 7, 3, 5], [1, 7, 3, 5]]])
    assert torch.equal(drawn, philox(torch.tensor([99]), counters).flatten(1)[:, :6])


@pytest.mark.parametrize("generate", [words, uniform, normal])
def test_a_row_does_not_depend_on_its_batch_nor_on_how_much_is_drawn(generate) -> None:
    seeds, draws = torch.tensor([1, -2, 3, 2**62]), torch.tensor([0, 9, 2**40, 1])
    together = generate(seeds, draws, 1, 37)
    for row in range(4):
        alone = generate(seeds[row : row + 1], draws[row : row + 1], 1, 101)
        assert torch.equal(alone[0, :37], together[row])


def test_every_part_of_the_key_changes_the_numbers() -> None:
    def draw(seed: int = 1, step: int = 1, purpose: int = 1) -> torch.Tensor:
        return words(torch.tensor([seed]), torch.tensor([step]), purpose, 64)

    streams = [draw(), draw(seed=2), draw(seed=1 + 2**32), draw(step=2), draw(step=1 + 2**32), draw(purpose=2)]
    for i, left in enumerate(streams):
        for right in streams[:i]:
            assert not (left == right).any()


def test_uniform_is_uniform_and_never_0_or_1() -> None:
    drawn = uniform(torch.arange(4), torch.zeros(4, dtype=torch.int64), 0, 50_000)
    assert drawn.dtype == torch.float64 and drawn.shape == (4, 50_000)
    assert drawn.min() > 0.0 and drawn.max() < 1.0
    counts = torch.histc(drawn.double(), bins=100, min=0.0, max=1.0)
    chi_square = ((counts - 2000.0) ** 2 / 2000.0).sum().item()
    assert chi_square < 160.0  # 99 degrees of freedom: p = 1e-4


def test_extreme_words_stay_inside_the_open_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = torch.tensor([[0, 0, 2**32 - 1, 2**32 - 1]])
    monkeypatch.setattr("kernels.philox.words", lambda *_: extremes)
    drawn = uniform(torch.tensor([0]), torch.tensor([0]), 0, 4)
    assert drawn.min() > 0.0 and drawn.max() < 1.0
    assert normal(torch.tensor([0]), torch.tensor([0]), 0, 4).isfinite().all()


def test_normal_has_the_moments_of_a_standard_normal() -> None:
    count = 200_000
    drawn = normal(torch.arange(5), torch.arange(5), 2, count // 5)
    assert drawn.dtype == torch.float32
    z = drawn.double().flatten()
    bound = 4.5 / math.sqrt(count)
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs((z**power).mean().item() - moment) < bound * math.sqrt(variance)


def test_normal_numbers_are_uncorrelated_across_elements_seeds_draws_and_purposes() -> None:
    size = 40_000
    seeds, draws = torch.tensor([1, 1, 2]), torch.tensor([1, 2, 1])
    streams = torch.cat((normal(seeds, draws, 0, size), normal(seeds[:1], draws[:1], 1, size))).double()
    streams = torch.cat((streams, streams[:1].roll(1, 1), streams[:1].roll(2, 1)))
    correlation = torch.corrcoef(streams) - torch.eye(len(streams))
    assert correlation.abs().max() < 5.0 / math.sqrt(size)


def test_odd_sizes_and_a_purpose_out_of_range() -> None:
    one = torch.tensor([3])
    assert normal(one, one, 0, 7).shape == (1, 7)
    with pytest.raises(ValueError, match="purpose"):
        normal(one, one, 2**32, 1)
