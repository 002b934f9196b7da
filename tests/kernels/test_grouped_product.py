"""Products with the matrices of experts: the Triton kernel against torch, for routings that leave experts idle or full."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.dispatch import prefer_triton
from kernels.grouped_product import ExpertMatrices, Routing, grouped_product, reference
from tests.kernels.tolerances import DTYPES, assert_near


def matrices(
    count: int, outputs: int, size: int, kind: torch.dtype, dtype: torch.dtype, device: torch.device, biased: bool = False
) -> ExpertMatrices:
    generator = torch.Generator().manual_seed(count + outputs + size)
    small = kind in (torch.int8, torch.float8_e4m3fn)
    weights = [torch.randn(outputs, size, generator=generator) * (30 if small else 1) for _ in range(count)]
    scales = [torch.rand(outputs, generator=generator).to(device) / 30 for _ in range(count)]
    biases = [torch.randn(outputs, generator=generator).to(device, dtype) for _ in range(count)]
    stored = [weight.clamp(-127, 127).to(device).to(kind) for weight in weights]
    return ExpertMatrices(stored, scales if small else None, biases if biased else None)


def hold(experts: ExpertMatrices, chosen: Tensor, dtype: torch.dtype) -> None:
    """Both products of a mixture: tokens to pairs, and pairs to weighted pairs."""
    generator = torch.Generator().manual_seed(chosen.numel())
    routing = Routing(chosen, experts.count)
    tokens = torch.randn(len(chosen), experts.inputs, generator=generator).to(chosen.device, dtype)
    pairs = torch.randn(chosen.numel(), experts.inputs, generator=generator).to(chosen.device, dtype)
    weights = torch.rand(chosen.shape, generator=generator).to(chosen.device, dtype)
    with prefer_triton():
        ours = grouped_product(tokens, experts, routing), grouped_product(pairs, experts, routing, weights)
    expected = [
        reference.grouped_product(tokens, experts, routing, None), reference.grouped_product(pairs, experts, routing, weights),
    ]  # fmt: skip
    for one, other in zip(ours, expected, strict=True):
        assert_near(one, other, sums=1e-5)


ROUTINGS = {
    "one token": [[2, 0]],
    "all through one": [[1]] * 37,
    "some idle, some full": [[0, 3]] * 18 + [[3, 5]] * 5 + [[5, 0]],
    "as many as a tile": [[4]] * 16 + [[5]] * 16,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROUTINGS)
def test_agrees_with_the_reference(name: str, dtype: torch.dtype, device: torch.device) -> None:
    experts = matrices(6, 70, 45, dtype, dtype, device, biased=name != "one token")
    hold(experts, torch.tensor(ROUTINGS[name], device=device), dtype)


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_8_bits_are_widened(kind: torch.dtype, dtype: torch.dtype, device: torch.device) -> None:
    hold(matrices(3, 40, 100, kind, dtype, device, biased=True), torch.tensor([[0, 2], [2, 1], [1, 0]], device=device), dtype)


def test_larger_tiles_agree_too(device: torch.device) -> None:
    """More pairs an expert than the smallest tile has."""
    chosen = torch.randint(3, (70, 1), generator=torch.Generator().manual_seed(0)).to(device)
    hold(matrices(3, 33, 40, torch.bfloat16, torch.bfloat16, device), chosen, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=8, deadline=None)
@given(count=st.integers(1, 70), tokens=st.integers(1, 2500), outputs=st.integers(1, 99), size=st.integers(1, 99), data=st.data())
def test_agrees_with_the_reference_at_any_size(count: int, tokens: int, outputs: int, size: int, data: st.DataObject) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, per_token = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, min(count, 8)))
    scores = torch.rand(tokens, count, generator=torch.Generator().manual_seed(tokens)).square()
    hold(matrices(count, outputs, size, dtype, dtype, device), scores.topk(per_token).indices.to(device), dtype)


@settings(max_examples=5, deadline=None)
@given(count=st.integers(1, 9), tokens=st.integers(1, 30), outputs=st.integers(1, 80), size=st.integers(1, 80), data=st.data())
def test_agrees_with_the_reference_at_any_shape(count: int, tokens: int, outputs: int, size: int, data: st.DataObject) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    per_token = data.draw(st.integers(1, count))
    scores = torch.rand(tokens, count, generator=torch.Generator().manual_seed(tokens))
    chosen = scores.topk(per_token).indices.to(device)
    hold(matrices(count, outputs, size, torch.float32, torch.float32, device), chosen, torch.float32)


def test_no_tokens_are_no_rows(device: torch.device) -> None:
    experts = matrices(2, 8, 4, torch.float32, torch.float32, device)
    with prefer_triton():
        empty = torch.zeros(0, 2, dtype=torch.int64, device=device)
        assert grouped_product(torch.zeros(0, 4, device=device), experts, Routing(empty, 2)).shape == (0, 8)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    experts = matrices(2, 8, 4, torch.float32, torch.float32, device)
    chosen = torch.tensor([[0, 1], [1, 0]], device=device)
    with pytest.raises(ValueError, match=r"x must be \[2 or 4, 4\] for 2 tokens of 2 experts, not \[3, 4\]"):
        grouped_product(torch.zeros(3, 4, device=device), experts, Routing(chosen, 2))
    with pytest.raises(ValueError, match="3 experts can be chosen, and there are matrices of 2"):
        grouped_product(torch.zeros(2, 4, device=device), experts, Routing(chosen, 3))
    with pytest.raises(ValueError, match="alike in shape"):
        ExpertMatrices([torch.zeros(2, 3), torch.zeros(3, 3)])
    with pytest.raises(ValueError, match="contiguous"):
        ExpertMatrices([torch.zeros(3, 2).t()])
