"""Norms: the Triton kernel against torch, over shapes that no block fits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.dispatch import prefer_triton
from kernels.rms_norm import add_layer_norm, add_rms_norm, layer_norm, reference, rms_norm
from tests.kernels.tolerances import DTYPES, assert_near

SHAPES = [(1, 64), (7, 96), (3, 2049), (5, 3, 128), (2, 1), (0, 32), (37, 100), (1, 2, 3, 16)]


def drawn(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, a branch, weight and bias."""
    generator = torch.Generator().manual_seed(sum(shape))
    x, branch = (torch.randn(shape, generator=generator) * 3 + 1 for _ in range(2))
    weight, bias = (torch.randn(shape[-1], generator=generator).to(device) for _ in range(2))
    return x.to(device, dtype), branch.to(device, dtype), weight, bias


def hold(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> None:
    """All four functions, with and without weights, against the reference."""
    with prefer_triton():
        ours = [rms_norm(x, weight, 1e-6), rms_norm(x, None, 1e-5), layer_norm(x, weight, bias, 1e-5)]
        normed, total = add_rms_norm(x, branch, weight, 1e-6)
        centred, same = add_layer_norm(x, branch, weight, bias, 1e-6)
    expected = [
        reference.rms_norm(x, weight, 1e-6), reference.rms_norm(x, None, 1e-5), reference.layer_norm(x, weight, bias, 1e-5),
    ]  # fmt: skip
    for one, other in zip(ours, expected, strict=True):
        assert_near(one, other, sums=5e-6)
    assert_near(total, x + branch)
    assert torch.equal(same, total)
    assert_near(normed, reference.rms_norm(total, weight, 1e-6), sums=5e-6)
    assert_near(centred, reference.layer_norm(total, weight, bias, 1e-6), sums=5e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_agree_with_the_reference(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    hold(*drawn(shape, dtype, device))


@settings(max_examples=5, deadline=None)
@given(rows=st.integers(1, 40), size=st.integers(1, 300), dtype=st.sampled_from(DTYPES))
def test_agree_with_the_reference_at_any_shape(rows: int, size: int, dtype: torch.dtype) -> None:
    hold(*drawn((rows, size), dtype, torch.device("cuda" if torch.cuda.is_available() else "cpu")))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 5000), size=st.integers(1, 6000), dtype=st.sampled_from(DTYPES))
def test_agree_with_the_reference_at_any_size(rows: int, size: int, dtype: torch.dtype) -> None:
    rows = max(1, min(rows, 2_000_000 // size))
    hold(*drawn((rows, size), dtype, torch.device("cuda" if torch.cuda.is_available() else "cpu")))


def test_rows_may_lie_apart_from_one_another(device: torch.device) -> None:
    """The heads of queries inside of stacked projections, and columns of a wider matrix."""
    stacked = torch.randn(5, 12, 64, device=device)
    wide = torch.randn(6, 200, device=device)
    with prefer_triton():
        for x in (stacked[:, 2:7], stacked[1:4, ::2], stacked.transpose(0, 1), stacked.transpose(1, 2), wide[:, 50:150]):
            assert_near(rms_norm(x, None, 1e-6), reference.rms_norm(x, None, 1e-6), sums=5e-6)


def test_a_row_has_the_same_bits_alone_and_among_others(device: torch.device) -> None:
    for size in (64, 700, 2500):
        x, branch, weight, bias = drawn((19, size), torch.float32, device)
        with prefer_triton():
            together = add_layer_norm(x, branch, weight, bias, 1e-6)
            for row in (0, 7, 18):
                one = slice(row, row + 1)
                alone = add_layer_norm(x[one], branch[one], weight, bias, 1e-6)
                assert all(torch.equal(part[0], whole[row]) for part, whole in zip(alone, together, strict=True))


def test_one_that_is_differentiated_through_keeps_its_derivatives(device: torch.device) -> None:
    x, branch, weight, _ = drawn((3, 8), torch.float32, device)
    weight.requires_grad_()
    with prefer_triton():
        add_rms_norm(x, branch, weight, 1e-6)[0].sum().backward()
        rate = torch.func.jvp(lambda x: rms_norm(x, None, 1e-6), (x,), (branch,))[1]
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    assert rate.abs().sum() > 0


def test_a_branch_of_another_shape_is_refused(device: torch.device) -> None:
    x, _, weight, _ = drawn((3, 8), torch.float32, device)
    with pytest.raises(ValueError, match=r"branch must have the shape of x, \[3, 8\], not \[2, 8\]"):
        add_rms_norm(x, x[:2], weight, 1e-6)
