"""Products with weights of 8 bits: the Triton kernel against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.dispatch import prefer_triton
from kernels.weight_only import DTYPES as WEIGHTS
from kernels.weight_only import MOST_ROWS, fits, reference, weight_only
from tests.kernels.tolerances import DTYPES, assert_near


def drawn(rows: int, outputs: int, size: int, weight: torch.dtype, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x, weight, scale and bias."""
    generator = torch.Generator().manual_seed(rows + outputs + size)
    numbers = (127 * (2 * torch.rand(outputs, size, generator=generator) - 1)).round()
    scale = torch.rand(outputs, generator=generator) / 127
    x, bias = torch.randn(rows, size, generator=generator), torch.randn(outputs, generator=generator)
    return [x.to(device, dtype), numbers.to(device).to(weight), scale.to(device), bias.to(device, dtype)]


def hold(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> None:
    with prefer_triton():
        assert fits(x, weight)
        for added in (bias, None):
            assert_near(weight_only(x, weight, scale, added), reference.weight_only(x, weight, scale, added), sums=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize(("rows", "outputs", "size"), [(1, 1, 1), (1, 40, 300), (5, 17, 512), (16, 33, 70), (64, 20, 130)])
def test_agrees_with_the_reference(
    rows: int, outputs: int, size: int, weight: torch.dtype, dtype: torch.dtype, device: torch.device
) -> None:
    hold(*drawn(rows, outputs, size, weight, dtype, device))


@settings(max_examples=5, deadline=None)
@given(rows=st.integers(1, 20), outputs=st.integers(1, 50), size=st.integers(1, 600), data=st.data())
def test_agrees_with_the_reference_at_any_shape(rows: int, outputs: int, size: int, data: st.DataObject) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hold(*drawn(rows, outputs, size, data.draw(st.sampled_from(WEIGHTS)), data.draw(st.sampled_from(DTYPES)), device))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, MOST_ROWS), outputs=st.integers(1, 5000), size=st.integers(1, 4000), data=st.data())
def test_agrees_with_the_reference_at_any_size(rows: int, outputs: int, size: int, data: st.DataObject) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    outputs = max(1, min(outputs, 3_000_000 // size))
    hold(*drawn(rows, outputs, size, data.draw(st.sampled_from(WEIGHTS)), data.draw(st.sampled_from(DTYPES)), device))


def test_every_number_of_8_bits_is_widened_exactly(device: torch.device) -> None:
    x = torch.eye(1, 1, device=device)
    bits = torch.arange(256, dtype=torch.uint8).view(torch.int8)
    eighths = bits.view(torch.float8_e4m3fn)
    sound = torch.isfinite(eighths.float())
    assert int(sound.sum()) == 254
    for weight in (bits, eighths[sound]):
        with prefer_triton():
            ours = weight_only(x, weight.to(device)[:, None], torch.ones(len(weight), device=device))
        assert torch.equal(ours[0].cpu(), weight.float())


def test_a_row_has_the_same_bits_in_any_batch_of_up_to_sixteen(device: torch.device) -> None:
    x, weight, scale, bias = drawn(16, 40, 300, torch.int8, torch.bfloat16, device)
    with prefer_triton():
        together = weight_only(x, weight, scale, bias)
        for row in (0, 9, 15):
            assert torch.equal(weight_only(x[row], weight, scale, bias), together[row])


def test_many_rows_are_the_library_s(device: torch.device) -> None:
    with prefer_triton():
        weight = torch.zeros(3, 8, dtype=torch.int8, device=device)
        assert fits(torch.zeros(4, MOST_ROWS // 4, 8, device=device), weight)
        assert not fits(torch.zeros(MOST_ROWS + 1, 8, device=device), weight)
        assert not fits(torch.zeros(0, 8, device=device), weight)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    x, weight, scale, bias = drawn(2, 5, 8, torch.int8, torch.float32, device)
    with pytest.raises(ValueError, match=r"weight must be int8 or float8_e4m3fn, not torch\.int16"):
        weight_only(x, weight.short(), scale, bias)
    with pytest.raises(ValueError, match=r"x \[2, 7\], weight \[5, 8\] and scale \[5\] do not fit"):
        weight_only(x[:, :7], weight, scale, bias)
