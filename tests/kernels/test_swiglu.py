"""Gated activations: the Triton kernel against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.dispatch import prefer_triton
from kernels.swiglu import ACTIVATIONS, gated, reference
from tests.kernels.tolerances import DTYPES, assert_near


def hold(rows: tuple[int, ...], size: int, activation: str, dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(size)
    x = (4 * torch.randn(*rows, 2 * size, generator=generator)).to(device, dtype)
    with prefer_triton():
        ours = gated(x, activation)
    assert_near(ours, reference.gated(x, activation))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_agrees_with_the_reference(activation: str, dtype: torch.dtype, device: torch.device) -> None:
    for rows, size in (((1,), 1), ((3,), 100), ((2, 3), 1025), ((0,), 16)):
        hold(rows, size, activation, dtype, device)


@settings(max_examples=5, deadline=None)
@given(rows=st.integers(1, 6), size=st.integers(1, 2100), activation=st.sampled_from(list(ACTIVATIONS)), data=st.data())
def test_agrees_with_the_reference_at_any_shape(rows: int, size: int, activation: str, data: st.DataObject) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hold((rows,), size, activation, data.draw(st.sampled_from(DTYPES)), device)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 5000), size=st.integers(1, 15000), activation=st.sampled_from(list(ACTIVATIONS)), data=st.data())
def test_agrees_with_the_reference_at_any_size(rows: int, size: int, activation: str, data: st.DataObject) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hold((max(1, min(rows, 2_000_000 // size)),), size, activation, data.draw(st.sampled_from(DTYPES)), device)


def test_large_numbers_neither_overflow_nor_vanish(device: torch.device) -> None:
    x = torch.tensor([[-200.0, 200.0, 90.0, -0.0, 2.0, 3.0, 4.0, 5.0]], device=device)
    for activation in ACTIVATIONS:
        with prefer_triton():
            assert_near(gated(x, activation), reference.gated(x, activation))


def test_rows_may_lie_in_a_wider_matrix(device: torch.device) -> None:
    wide = torch.randn(5, 60, device=device)
    with prefer_triton():
        assert_near(gated(wide[:, 10:50]), reference.gated(wide[:, 10:50], "silu"))


def test_what_it_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match=r"activation must be one of silu, gelu, gelu_tanh, relu, not 'swish'"):
        gated(torch.zeros(1, 4), "swish")
    with pytest.raises(ValueError, match="as many gates as ups, not 5 columns"):
        gated(torch.zeros(1, 5))
