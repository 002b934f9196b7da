"""The fused norm, rotation and write against its reference, and that against the decoder's own layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.dispatch import prefer_triton
from kernels.kv_write import Projected, kv_write
from kernels.kv_write.reference import kv_write as reference
from service.models.normalisation import RMSNorm
from service.models.rope import Rope, rotary_angles, rotate
from tests.kernels.tolerances import DTYPES, assert_near

pytest.importorskip("triton")


def projected(
    seed: int, tokens: int, heads: int, kv_heads: int, dim: int, turned: int | None, normed: bool, normed_values: bool,
    keys_as_values: bool, dtype: torch.dtype, device: torch.device | str,
) -> Projected:  # fmt: skip
    """Parts of one stacked matrix's output; `turned` None is no rotation at all."""
    torch.manual_seed(seed)
    both = torch.randn(tokens, heads + 2 * kv_heads, dim).to(device, dtype)
    query, key, value = both.split((heads, kv_heads, kv_heads), dim=1)
    weights = (torch.rand(dim, device=device) + 0.5, torch.rand(dim, device=device) + 0.5) if normed else (None, None)
    positions = torch.randint(0, 4000, (tokens,), device=device)
    angles = None if turned is None else rotary_angles(positions, Rope(amplitude=1.1, dim=turned), dim)
    return Projected(query, key, key if keys_as_values else value, *weights, normed_values, 1e-5, angles)


def places(tokens: int, device: torch.device | str) -> torch.Tensor:
    slots = torch.randperm(24)[:tokens]
    if tokens > 2:
        slots[1] = -1
    return slots.to(device)


@given(
    seed=st.integers(0, 1000), tokens=st.sampled_from((1, 3)), heads=st.sampled_from(((1, 1), (4, 2), (7, 1), (6, 6))),
    size=st.sampled_from(((64, 64), (96, 48), (128, 128), (256, None), (80, 32), (8, 8))), normed=st.booleans(),
    normed_values=st.booleans(), keys_as_values=st.booleans(), dtype=st.sampled_from(DTYPES), wide=st.booleans(),
)  # fmt: skip
@settings(max_examples=15, deadline=None, derandomize=True)
def test_as_the_reference(
    seed: int, tokens: int, heads: tuple[int, int], size: tuple[int, int | None], normed: bool, normed_values: bool,
    keys_as_values: bool, dtype: torch.dtype, wide: bool,
) -> None:  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    p = projected(seed, tokens, *heads, *size, normed, normed_values, keys_as_values, dtype, device)
    before = torch.randn(8, 3, 2, heads[1], size[0]).to(device, dtype)
    slots = places(tokens, device).to(torch.int64 if wide else torch.int32)
    stores = before.clone(), before.clone()
    with prefer_triton():
        query = kv_write(p, stores[0], slots)
    assert_near(query, reference(p, stores[1], slots))
    assert_near(*stores)
    kept = slots[slots >= 0].long()
    untouched = torch.ones(24, dtype=torch.bool, device=device)
    untouched[kept] = False
    assert torch.equal(stores[0].flatten(0, 1)[untouched], before.flatten(0, 1)[untouched])


@pytest.mark.parametrize("turned", [None, 24, 64])
@pytest.mark.parametrize("normed", [False, True])
def test_the_reference_is_what_the_decoder_does(turned: int | None, normed: bool) -> None:
    p = projected(0, 5, 4, 2, 64, turned, normed, True, False, torch.float32, "cpu")
    query, key, value = p.query, p.key, RMSNorm(64, p.eps, weighted=False)(p.value)
    if p.query_weight is not None and p.key_weight is not None:
        norms = RMSNorm(64, p.eps), RMSNorm(64, p.eps)
        for norm, weight in zip(norms, (p.query_weight, p.key_weight), strict=True):
            norm.weight = torch.nn.Parameter(weight, requires_grad=False)
        query, key = norms[0](query), norms[1](key)
    if p.angles is not None:
        query, key = rotate(query, *p.angles), rotate(key, *p.angles)
    store, slots = torch.zeros(6, 4, 2, 2, 64), torch.tensor([3, 23, 0, 11, 5])
    found = kv_write(p, store, slots, torch.empty_like(query))
    torch.testing.assert_close(found, query)
    torch.testing.assert_close(store.flatten(0, 1)[slots], torch.stack((key, value), dim=1))


def test_what_cannot_be_read_is_refused() -> None:
    query, key = torch.zeros(2, 4, 8), torch.zeros(2, 2, 8)
    with pytest.raises(ValueError, match="both or not at all"):
        Projected(query, key, key, torch.ones(8))
    with pytest.raises(ValueError, match="lie closely"):
        Projected(query.transpose(1, 2), key, key)
