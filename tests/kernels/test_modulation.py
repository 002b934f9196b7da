"""Adaptive norms: the Triton kernel against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.dispatch import prefer_triton
from kernels.modulation import gate_added, gate_added_modulated, modulated, reference
from tests.kernels.tolerances import DTYPES, assert_near


def drawn(rows: int, tokens: int, size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """x, a branch, and gate, shift and scale as a network's: parts of one projection."""
    generator = torch.Generator().manual_seed(rows + tokens + size)
    x, branch = (torch.randn(rows, tokens, size, generator=generator).to(device, dtype) for _ in range(2))
    parts = torch.randn(rows, 6 * size, generator=generator).to(device, dtype).unsqueeze(1).chunk(6, dim=-1)
    return x, branch, parts[4], parts[1], parts[2]


def hold(x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, centred: bool) -> None:
    with prefer_triton():
        ours = modulated(x, shift, scale, 1e-6, centred)
        plain = gate_added(x, gate, branch)
        total, hidden = gate_added_modulated(x, gate, branch, shift, scale, 1e-5, centred)
    assert_near(ours, reference.modulated(x, shift, scale, 1e-6, centred), sums=5e-6)
    assert_near(plain, reference.gate_added(x, gate, branch))
    assert torch.equal(total, plain)
    assert_near(hidden, reference.modulated(total, shift, scale, 1e-5, centred), sums=5e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 32), (3, 5, 96), (2, 4, 1152), (2, 3, 1), (0, 4, 16)])
def test_agrees_with_the_reference(shape: tuple[int, int, int], centred: bool, dtype: torch.dtype, device: torch.device) -> None:
    hold(*drawn(*shape, dtype, device), centred)


@settings(max_examples=5, deadline=None)
@given(rows=st.integers(1, 3), tokens=st.integers(1, 5), size=st.integers(1, 200), dtype=st.sampled_from(DTYPES))
def test_agrees_with_the_reference_at_any_shape(rows: int, tokens: int, size: int, dtype: torch.dtype) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hold(*drawn(rows, tokens, size, dtype, device), centred=bool(size % 2))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 9), tokens=st.integers(1, 1100), size=st.integers(1, 3100), dtype=st.sampled_from(DTYPES))
def test_agrees_with_the_reference_at_any_size(rows: int, tokens: int, size: int, dtype: torch.dtype) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hold(*drawn(rows, max(1, min(tokens, 1_000_000 // (rows * size))), size, dtype, device), centred=bool(size % 2))


def test_tokens_may_be_the_first_of_longer_sequences(device: torch.device) -> None:
    x, branch, gate, shift, scale = drawn(3, 7, 48, torch.float32, device)
    hold(x[:, :4], branch[:, 2:6], gate, shift, scale, centred=False)
    hold(x.transpose(0, 1)[:3, :3], branch.mT.contiguous().mT[:, :3], gate, shift, scale, centred=True)


def test_a_vector_for_another_number_of_rows_is_refused(device: torch.device) -> None:
    x, branch, gate, shift, scale = drawn(2, 3, 8, torch.float32, device)
    with pytest.raises(ValueError, match=r"scale must be \[2, 1, 8\] for x \[2, 3, 8\], not \[1, 1, 8\]"):
        modulated(x, shift, scale[:1])
    with pytest.raises(ValueError, match="gate must be"):
        gate_added(x, gate[:1], branch)
