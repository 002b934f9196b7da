"""The sampler update: the formula of a table's row, for every row of a batch by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.sampler_update import sampler_update

SHAPES = [(1, 1), (3, 5), (4, 3, 8, 8), (2, 7, 1, 3)]


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """x, f, h1, h2, eps of this shape, and coefficients."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for _ in range(5)]
    return tensors, torch.randn(shape[0], 7, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_follows_the_formula(shape: tuple[int, ...]) -> None:
    (x, f, h1, h2, eps), coefficients = draw(shape)
    updated, new_h1, new_h2 = sampler_update(x, f, h1, h2, coefficients, eps)
    for row, (a, b, c1, c2, d, p, q) in enumerate(coefficients.tolist()):
        wide = [tensor[row].double() for tensor in (x, f, h1, h2, eps)]
        expected = sum(k * tensor for k, tensor in zip((a, b, c1, c2, d), wide, strict=True))
        torch.testing.assert_close(updated[row].double(), expected, atol=2e-6, rtol=1e-6)
        torch.testing.assert_close(new_h1[row].double(), p * wide[0] + q * wide[1], atol=2e-6, rtol=1e-6)
    assert torch.equal(new_h2, h1)


def test_a_row_is_bit_for_bit_the_same_alone_and_in_a_batch() -> None:
    (x, f, h1, h2, eps), coefficients = draw((6, 3, 9, 5))
    together = sampler_update(x, f, h1, h2, coefficients, eps)
    for row in range(6):
        one = slice(row, row + 1)
        alone = sampler_update(x[one], f[one], h1[one], h2[one], coefficients[one], eps[one])
        assert all(torch.equal(single[0], batch[row]) for single, batch in zip(alone, together, strict=True))


def test_without_noise_the_term_is_left_out() -> None:
    (x, f, h1, h2, eps), coefficients = draw((3, 4))
    coefficients[:, 4] = 0.0
    with_noise, without = (sampler_update(x, f, h1, h2, coefficients, noise) for noise in (eps, None))
    assert all(torch.equal(left, right) for left, right in zip(with_noise, without, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_updated_in_float32(dtype: torch.dtype) -> None:
    (x, f, h1, h2, eps), coefficients = draw((3, 4), dtype)
    results = sampler_update(x, f, h1, h2, coefficients, eps)
    wide = sampler_update(x.float(), f.float(), h1.float(), h2.float(), coefficients, eps.float())
    for result, expected in zip(results, wide, strict=True):
        assert result.dtype == torch.float32
        assert torch.equal(result, expected)


def test_shapes_that_do_not_fit_are_refused() -> None:
    (x, f, h1, h2, _), coefficients = draw((3, 4))
    with pytest.raises(ValueError, match=r"coefficients must be \[3, 7\]"):
        sampler_update(x, f, h1, h2, coefficients[:2])
    with pytest.raises(ValueError, match="f must have the shape of x"):
        sampler_update(x, f[:, :3], h1, h2, coefficients)
