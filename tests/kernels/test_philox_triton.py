"""Philox in Triton draws what the reference draws, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import philox
from tests.kernels.test_philox import KNOWN_ANSWERS, parse, signed

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from kernels import philox_triton  # noqa: E402

BLOCK = 64
SEEDS = st.integers(-(2**63), 2**63 - 1)


@triton.jit
def write_words(out, seeds, draws, purpose, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    seed_lo, seed_hi = philox_triton.seed_words(tl.load(seeds + row))
    draw_lo, draw_hi = philox_triton.seed_words(tl.load(draws + row))
    block = tl.arange(0, BLOCK)
    words = philox_triton.philox4x32(seed_lo, seed_hi, block.to(tl.uint32), draw_lo, purpose.to(tl.uint32), draw_hi)
    for k in tl.static_range(4):
        tl.store(out + (row * BLOCK + block) * 4 + k, words[k].to(tl.int64))


@triton.jit
def write_numbers(uniforms, gumbels, normals, words, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first, second = tl.load(words + 2 * at).to(tl.uint32), tl.load(words + 2 * at + 1).to(tl.uint32)
    tl.store(uniforms + at, philox_triton.uniform(first))
    tl.store(gumbels + at, philox_triton.gumbel(first))
    one, other = philox_triton.normal_pair(first, second)
    tl.store(normals + 2 * at, one)
    tl.store(normals + 2 * at + 1, other)


def words_of(seeds: Tensor, draws: Tensor, purpose: int) -> Tensor:
    out = torch.empty(len(seeds), 4 * BLOCK, dtype=torch.int64, device=seeds.device)
    write_words[(len(seeds),)](out, seeds, draws, purpose, BLOCK=BLOCK)
    return out


@settings(max_examples=10, deadline=None)
@given(st.lists(SEEDS, min_size=1, max_size=3), st.integers(0, 2**63 - 1), st.integers(2, 2**31 - 1))
def test_words_are_those_of_the_reference(seeds: list[int], draw: int, purpose: int) -> None:
    on = "cuda" if torch.cuda.is_available() else "cpu"
    seed, draws = torch.tensor(seeds, device=on), torch.full((len(seeds),), draw, device=on)
    assert torch.equal(words_of(seed, draws, purpose), philox.words(seed, draws, purpose, 4 * BLOCK))


@triton.jit
def write_answer(out, parts):
    words = philox_triton.philox4x32(
        tl.load(parts).to(tl.uint32), tl.load(parts + 1).to(tl.uint32), tl.load(parts + 2).to(tl.uint32),
        tl.load(parts + 3).to(tl.uint32), tl.load(parts + 4).to(tl.uint32), tl.load(parts + 5).to(tl.uint32),
    )  # fmt: skip
    for k in tl.static_range(4):
        tl.store(out + k, words[k].to(tl.int64))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str, device: torch.device) -> None:
    out = torch.empty(4, dtype=torch.int64, device=device)
    write_answer[(1,)](out, torch.tensor([*parse(key), *parse(counter)], device=device))
    assert out.tolist() == parse(expected)
    assert philox.philox(torch.tensor([signed(*parse(key))]), torch.tensor([parse(counter)])).tolist() == [out.tolist()]


def numbers_of(words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pairs = len(words) // 2
    uniforms, gumbels = (torch.empty(pairs, dtype=torch.float64, device=words.device) for _ in range(2))
    normals = torch.empty(2 * pairs, device=words.device)
    write_numbers[(pairs // BLOCK,)](uniforms, gumbels, normals, words, BLOCK=BLOCK)
    return uniforms, gumbels, normals


def test_numbers_are_those_of_the_reference(device: torch.device) -> None:
    seed, draw = torch.tensor([7], device=device), torch.tensor([3 << 33 | 5], device=device)
    uniforms, gumbels, normals = numbers_of(philox.words(seed, draw, 9, 8192)[0].contiguous())
    expected = philox.uniform(seed, draw, 9, 8192)[0, ::2]
    assert torch.equal(uniforms, expected)
    torch.testing.assert_close(gumbels, -torch.log(-torch.log(expected)), rtol=1e-15, atol=1e-15)
    reference = philox.normal(seed, draw, 9, 8192)[0]
    different = normals != reference
    assert int(different.sum()) <= 1
    torch.testing.assert_close(normals, reference, rtol=2e-7, atol=0.0)


@pytest.mark.parametrize("word", [0, 1, 2**31, 2**32 - 1])
def test_the_outermost_words_give_finite_numbers(word: int, device: torch.device) -> None:
    uniforms, gumbels, normals = numbers_of(torch.full((2 * BLOCK,), word, device=device))
    assert bool((uniforms > 0).all()) and bool((uniforms < 1).all())
    check: Callable[[Tensor], Any] = lambda x: bool(torch.isfinite(x).all())  # noqa: E731
    assert check(gumbels) and check(normals)
