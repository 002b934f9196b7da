"""Triton's paged attention against the reference, over rows of every kind, and what it promises of bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.paged_attention import Layout, Plan, pack_plans, packed_attention, packing
from tests.kernels.packed_rows import KINDS, Packed, random_rows

pytest.importorskip("triton")

from tests.kernels.row_products import make_rows_alike

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.5e-2, torch.float16: 3e-3}
"""Weights are rounded to the values' dtype, by the interpreter cut off, and so is the result."""


@pytest.fixture
def short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts are split as if they were long."""
    monkeypatch.setattr(packing, "SHORTEST_SPLIT", 64)
    monkeypatch.setattr(packing, "INVARIANT_SPLIT", 64)


def assert_near(rows: Packed, out: torch.Tensor, expected: torch.Tensor) -> None:
    assert out.dtype == rows.query.dtype and torch.isfinite(out).all()
    tolerance = TOLERANCE[out.dtype]
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "heads,kv_heads,head_dim,block_size,window,scale,cap,dtype",
    [
        (4, 2, 64, 16, None, None, None, torch.bfloat16),
        (3, 1, 96, 1, None, None, None, torch.float32),
        (2, 2, 128, 4, 9, 0.3, None, torch.float16),
        (2, 1, 256, 16, 70, None, 2.0, torch.bfloat16),
        (7, 1, 8, 3, 1, 0.5, 5.0, torch.float32),
        (18, 1, 16, 8, 64, None, None, torch.float16),
    ],
)
def test_rows_of_every_kind_in_one_batch(
    heads: int, kv_heads: int, head_dim: int, block_size: int, window: int | None, scale: float | None, cap: float | None,
    dtype: torch.dtype, device: torch.device, short_splits: None,
) -> None:  # fmt: skip
    kinds = KINDS[:-1]
    rows = random_rows(heads, kinds, block_size, heads, kv_heads, head_dim, dtype, longest=80, device=device)
    if window is None:
        (sweep, *_) = pack_plans(rows.plans, block_size, [rows.kind(window)], 64).sweeps(rows.kind(window))
        assert len(sweep.merges), "nothing was split"
    assert_near(rows, rows.attended(window, scale, cap, programs=64), rows.reference(window, scale, cap))


@pytest.mark.parametrize("window", [None, 5])
def test_queries_of_a_tree_as_rows_of_their_own(window: int | None, device: torch.device) -> None:
    rows = random_rows(2, ("branches", "decode"), head_dim=16, longest=70, device=device)
    assert len(rows.plans) > 2
    assert_near(rows, rows.attended(window), rows.reference(window))


@pytest.mark.parametrize("start,queries", [(0, 1), (1, 1), (15, 2), (16, 1), (62, 2), (63, 1), (63, 2), (64, 1), (65, 1)])
def test_one_row_at_the_borders_of_blocks_and_tiles(start: int, queries: int, device: torch.device, short_splits: None) -> None:
    rows = random_rows(0, ("prefill",), 16, 2, 1, longest=100, device=device)
    blocks = list(range(len(rows.store)))[::-1]
    rows = Packed([Plan(0, queries, start, blocks)], rows.query[:queries], rows.store)
    for window in (None, 16):
        assert_near(rows, rows.attended(window), rows.reference(window))


@given(
    seed=st.integers(0, 10_000), kinds=st.lists(st.sampled_from(KINDS[:-1]), min_size=1, max_size=3),
    block_size=st.sampled_from((1, 2, 7, 16)), heads=st.sampled_from(((1, 1), (2, 2), (5, 1))), dim=st.sampled_from((16, 64, 80)),
    window=st.sampled_from((None, 3, 33)), dtype=st.sampled_from(tuple(TOLERANCE)), invariant=st.booleans(),
)  # fmt: skip
@settings(max_examples=8, deadline=None, derandomize=True)
def test_whatever_rows_there_are(
    seed: int, kinds: list[str], block_size: int, heads: tuple[int, int], dim: int, window: int | None, dtype: torch.dtype,
    invariant: bool,
) -> None:  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = random_rows(seed, kinds, block_size, *heads, dim, dtype, longest=60, device=device)
    assert_near(rows, rows.attended(window, invariant=invariant), rows.reference(window))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_contexts_of_up_to_5000_tokens(head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
    for longest in (1, 17, 300, 5000):
        rows = random_rows(longest, KINDS, 16, 4, 1, head_dim, dtype, longest, device)
        for window in (None, 256):
            assert_near(rows, rows.attended(window, programs=32), rows.reference(window))


def test_the_same_rows_have_the_same_bits_again(device: torch.device, short_splits: None) -> None:
    rows = random_rows(5, ("decode", "chunk"), heads=2, kv_heads=1, dtype=torch.float16, device=device)
    first = rows.attended(programs=64)
    assert all(torch.equal(rows.attended(programs=64), first) for _ in range(2))


def test_numbers_of_others_are_not_looked_at(device: torch.device) -> None:
    rows = random_rows(6, KINDS[:-1], heads=2, kv_heads=1, head_dim=16, longest=40, device=device)
    seen = {block for plan in rows.plans for block in plan.blocks}
    others = [block for block in range(len(rows.store)) if block not in seen]
    rows.store[others] = float("nan")
    assert torch.isfinite(rows.attended()).all()


@pytest.mark.parametrize("window", [None, 20])
def test_invariant_bits_depend_on_neither_batch_nor_chunks(
    window: int | None, device: torch.device, short_splits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on whether a row's slots are told one by one, as those of a branch of a tree."""
    make_rows_alike(monkeypatch)
    kinds = ("chunk", "decode", "canvas")
    rows = random_rows(11, kinds, 4, 2, 1, 64, torch.float16, longest=90, device=device)
    plan = rows.plans[0]
    whole = rows.attended(window, invariant=True)
    for i in range(len(kinds)):
        assert torch.equal(rows.some([i]).attended(window, invariant=True), rows.of_row(i, whole)), kinds[i]
    parts = [replace(plan, queries=3), replace(plan, offset=3, queries=5, start=plan.start + 3)]
    for i in (8, 17, plan.queries - 1):
        slots = [plan.blocks[place // 4] * 4 + place % 4 for place in range(plan.start + i + 1)]
        parts.append(replace(plan, offset=i, queries=1, start=plan.start + i, blocks=(), slots=slots))
    chunked = Packed(parts, rows.query, rows.store).attended(window, invariant=True)
    for part in parts:
        mine = slice(part.offset, part.offset + part.queries)
        assert torch.equal(chunked[mine], whole[mine]), part


def test_a_captured_graph_could_run_again_on_other_rows(device: torch.device, short_splits: None) -> None:
    """The same tensors, sizes and programs with other contents; tokens and rows that are not used do nothing."""
    many = random_rows(7, ("decode",) * 5, head_dim=16, longest=100, device=device)
    few = many.some([3, 1])
    kind = many.kind(None)
    layout = Layout.decoding(6, 300, [kind], 16)
    planned = [pack_plans(rows.plans, 4, [kind], 16, layout=layout) for rows in (many, few)]
    held, query = planned[0].to(device), torch.zeros(6, *many.query.shape[1:], device=device)
    for rows, plans in ((many, planned[0]), (few, planned[1]), (many, planned[0])):
        held.load(plans)
        query[: len(rows.query)] = rows.query
        out = packed_attention(query, many.store, held, None)
        assert_near(rows, out[: len(rows.query)], rows.reference())
        assert not out[len(rows.query) :].any()
