"""The sampler step with guidance, noise and estimates fused: the Triton kernel against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.dispatch import prefer_triton
from kernels.philox import normal
from kernels.sampler_update import Guidance, Noise, Update, reference, sampler_step
from tests.kernels.tolerances import assert_near

Drawn = tuple[list[Tensor], Tensor, Noise, Guidance, Tensor]


def drawn(shape: tuple[int, ...], device: torch.device, paired: int = 1, dtype: torch.dtype = torch.float32) -> Drawn:
    """States and output, coefficients, and all that may be fused; the output in `dtype`."""
    generator, rows = torch.Generator().manual_seed(sum(shape)), shape[0]
    x, f, h1, h2 = (torch.randn(shape, generator=generator).to(device) for _ in range(4))
    coefficients = torch.randn(rows, 7, generator=generator)
    coefficients[1::2, 4] = 0.0
    partner = torch.full((rows,), -1)
    partner[rows - paired :] = torch.randperm(paired, generator=generator)
    unconditional = torch.randn(paired, *shape[1:], generator=generator).to(device, dtype)
    guidance = Guidance(unconditional, partner.to(device), (4 * torch.rand(rows, generator=generator)).to(device))
    seeds = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator).to(device)
    draws = torch.randint(0, 2**40, (rows,), generator=generator).to(device)
    estimates = torch.randn(rows, 2, generator=generator).to(device)
    return [x, f.to(dtype), h1, h2], coefficients.to(device), Noise(seeds, draws, 3), guidance, estimates


def agree(ours: Update, expected: Update) -> None:
    for one, other in zip(ours, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert_near(one, other)


def hold(shape: tuple[int, ...], device: torch.device, paired: int, dtype: torch.dtype = torch.float32) -> None:
    states, coefficients, noise, guidance, estimates = drawn(shape, device, paired, dtype)
    with prefer_triton():
        ours = sampler_step(*states, coefficients, noise=noise, guidance=guidance, estimates=estimates)
    agree(ours, reference.sampler_step(*states, coefficients, None, noise, guidance, estimates))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "paired"), [((1, 1), 1), ((2, 4, 8, 9), 2), ((3, 1025), 0), ((3, 2, 5), 2)])
def test_everything_at_once_agrees_with_the_reference(
    shape: tuple[int, ...], paired: int, dtype: torch.dtype, device: torch.device
) -> None:
    hold(shape, device, paired, dtype)


@settings(max_examples=5, deadline=None)
@given(rows=st.integers(1, 4), size=st.integers(1, 2100), data=st.data())
def test_everything_at_once_agrees_with_the_reference_at_any_shape(rows: int, size: int, data: st.DataObject) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hold((rows, size), device, data.draw(st.integers(0, rows)))


def test_the_noise_is_that_of_philox_bit_for_bit(device: torch.device) -> None:
    """x' is the noise alone, of more than one block and with a seed and a draw of more than 32 bits."""
    rows, size = 2, 1500
    states = [torch.zeros(rows, size, device=device) for _ in range(4)]
    coefficients = torch.zeros(rows, 7, device=device)
    coefficients[:, 4] = 1.0
    noise = Noise(torch.tensor([-5, 2**62 + 3], device=device), torch.tensor([2**33 + 1, 7], device=device), 3)
    with prefer_triton():
        ours = sampler_step(*states, coefficients, noise=noise).x
    expected = normal(noise.seeds, noise.draws, 3, size)
    differing = int((ours != expected).sum())
    assert differing <= (0 if device.type == "cpu" else 1), "float64 logarithms may differ by a bit between devices"


def test_a_row_has_the_same_bits_alone_and_among_others(device: torch.device) -> None:
    states, coefficients, noise, guidance, estimates = drawn((5, 3, 40), device, paired=3)
    with prefer_triton():
        together = sampler_step(*states, coefficients, noise=noise, guidance=guidance, estimates=estimates)
        for row in range(5):
            one = slice(row, row + 1)
            alone = sampler_step(
                *(state[one] for state in states),
                coefficients[one],
                noise=Noise(noise.seeds[one], noise.draws[one], 3),
                guidance=Guidance(guidance.unconditional, guidance.partner[one], guidance.scale[one]),
                estimates=estimates[one],
            )
            assert all(torch.equal(single[0], batch[row]) for single, batch in zip(alone, together, strict=True))


def test_given_noise_and_slices_of_a_store(device: torch.device) -> None:
    store, coefficients = torch.randn(4, 3, 60, device=device), torch.randn(4, 7, device=device)
    x, h1, h2 = store[:, :, :48].unflatten(2, (3, 4, 4)).unbind(1)
    f, eps = torch.randn(2, 4, 3, 4, 4, device=device)
    with prefer_triton():
        agree(sampler_step(x, f, h1, h2, coefficients, eps), reference.sampler_step(x, f, h1, h2, coefficients, eps))
        agree(sampler_step(x, f, h1, h2, coefficients), reference.sampler_step(x, f, h1, h2, coefficients))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    states, coefficients, noise, guidance, estimates = drawn((3, 4), device)
    with pytest.raises(ValueError, match="either given or drawn"):
        sampler_step(*states, coefficients, states[0], noise=noise)
    with pytest.raises(ValueError, match=r"draws must be \[3\] for 3 rows, not \[2\]"):
        sampler_step(*states, coefficients, noise=Noise(noise.seeds, noise.draws[:2], 3))
    with pytest.raises(ValueError, match=r"partner must be \[3\]"):
        sampler_step(*states, coefficients, guidance=Guidance(guidance.unconditional, guidance.partner[:1], guidance.scale))
    with pytest.raises(ValueError, match=r"unconditional must be rows of \[4\], not of \[3\]"):
        wrong = Guidance(guidance.unconditional[:, :3], guidance.partner, guidance.scale)
        sampler_step(*states, coefficients, guidance=wrong)
    with pytest.raises(ValueError, match=r"estimates must be \[3, 2\]"):
        sampler_step(*states, coefficients, estimates=estimates[:1])
