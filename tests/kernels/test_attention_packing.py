"""How packed rows are cut into tasks: nobody's places are left out, and what is called full is."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.paged_attention import LayerKind, Layout, Plan, Tables, layout, pack_plans, packing, plan_groups
from tests.kernels.packed_rows import KINDS, random_rows


@given(
    seed=st.integers(0, 10_000), kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    group=st.sampled_from((1, 3, 40)), window=st.sampled_from((None, 1, 30, 200)),
    programs=st.sampled_from((1, 64)), invariant=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None, derandomize=True)
def test_tasks_cover_what_every_query_sees_once(
    seed: int, kinds: list[str], group: int, window: int | None, programs: int, invariant: bool
) -> None:
    rows = random_rows(seed, kinds, 4, 1, 1, 8, longest=700)
    kind = LayerKind(window, 2 * group, 2, 128, 2)
    packed = pack_plans(rows.plans, 4, [kind], programs, invariant)
    covered: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for sweep in packed.sweeps(kind):
        parts = set()
        for row, first, count, begin, full, end, part, _ in sweep.tasks.tolist():
            assert 0 <= begin <= full <= end and begin % packing.ALIGNED == 0 and (full % packing.ALIGNED == 0 or full == end)
            assert begin < end and 0 < count <= sweep.tile // group
            for query in range(first, first + count):
                covered.setdefault((row, query), []).append((begin, full, end))
            assert part == -1 or part not in parts
            parts.add(part)
        merged = [p for *_, first, number in sweep.merges[:, :5].tolist() for p in range(first, first + number)]
        assert sorted(merged) == sorted(parts - {-1}) == list(range(sweep.partials))
    for i, plan in enumerate(rows.plans):
        (visible,) = plan_groups([plan], 4, window, torch.device("cpu"))
        first_place = (max(0, plan.start - window + 1) // 4 if window else 0) * 4
        for query, mask in enumerate(visible.mask[0, 0]):
            seen = {first_place + at for at in np.flatnonzero(mask.numpy()).tolist()}
            ranges = sorted(covered[i, query])
            assert all(end <= begin for (_, _, end), (begin, _, _) in pairwise(ranges))
            assert seen <= {place for begin, _, end in ranges for place in range(begin, end)}
            assert all(place in seen for begin, full, _ in ranges for place in range(begin, full))


def test_invariant_tasks_begin_at_the_same_places_in_every_batch() -> None:
    kind, lone = LayerKind(None, 4, 2, 64, 2), Plan(0, 1, 5000, range(400))
    batch = [Plan(i, 1, 100 * i, range(400)) for i in range(50)] + [Plan(50, 1, 5000, range(400))]
    alone, among = (pack_plans(plans, 16, [kind], 100, True).sweeps(kind)[0].tasks for plans in ([lone], batch))
    assert len(alone) == -(-5001 // packing.INVARIANT_SPLIT) and torch.equal(alone[:, 1:6], among[-len(alone) :, 1:6])


def test_a_decoding_layout_holds_every_batch_of_its_size() -> None:
    chance = random.Random(0)
    kinds = [LayerKind(None, 8, 2, 64, 2), LayerKind(512, 8, 2, 64, 2)]
    room = Layout.decoding(16, 16 * 700, kinds, 132)
    for _ in range(40):
        rows = chance.randrange(1, 17)
        plans = [Plan(i, 1, chance.choice((0, 50, 511, 11_000)), range(700)) for i in range(rows)]
        packed = pack_plans(plans, 16, kinds, 132, layout=room)
        assert len(packed.numbers) == room.size and packed.padded
        for kind in kinds:
            (sweep,) = packed.sweeps(kind)
            assert int((sweep.tasks[:, 2] > 0).sum()) >= rows
    with pytest.raises(ValueError, match="the layout holds 16 rows, and there are 17"):
        pack_plans([Plan(i, 1, 0, [0]) for i in range(17)], 16, kinds, 132, layout=room)


def test_a_decoding_layout_holds_one_row_of_any_length() -> None:
    kind = LayerKind(None, 8, 1, 64, 2)
    blocks = range(10_000)
    room = Layout.decoding(1, len(blocks), [kind], 528)
    for stop in (135_168, 135_681, 135_900, 150_000):
        pack_plans([Plan(0, 1, stop - 1, blocks)], 16, [kind], 528, layout=room)


def test_long_contexts_are_split_for_all_programs_and_short_ones_are_not() -> None:
    kind = LayerKind(None, 32, 8, 128, 2)
    (long,) = pack_plans([Plan(0, 1, 99_999, range(6250))], 16, [kind], 528).sweeps(kind)
    assert 50 <= len(long.tasks) <= 66 and len(long.merges) == 1
    (short,) = pack_plans([Plan(i, 1, 200, range(20)) for i in range(256)], 16, [kind], 528).sweeps(kind)
    assert len(short.tasks) == 256 and len(short.merges) == 0


def test_rows_of_one_request_share_a_table_and_a_tree_may_have_64_tokens() -> None:
    kind, blocks = LayerKind(None, 1, 1, 64, 2), list(range(10))
    packed = pack_plans([Plan(0, 3, 0, blocks), Plan(3, 3, 0, blocks)], 4, [kind], 1)
    assert len(packed.entries) == 1
    masks = tuple((1 << i + 1) - 1 for i in range(65))
    tree = Plan(0, 64, 3, range(20), depths=tuple(range(64)), visible=masks[:64])
    low, high = pack_plans([tree], 4, [kind], 1).trees.view(-1, layout.TREE)[:, 1:3].long().unbind(1)
    assert [a % 2**32 + (b % 2**32 << 32) for a, b in zip(low.tolist(), high.tolist(), strict=True)] == list(masks[:64])
    with pytest.raises(ValueError, match="65 tokens"):
        pack_plans([Plan(0, 65, 3, range(20), depths=tuple(range(65)), visible=masks)], 4, [kind], 1)


def test_remembered_tables_are_those_of_the_plans_whatever_became_of_them() -> None:
    chance, kind, tables = random.Random(3), LayerKind(None, 1, 1, 64, 2), Tables()
    blocks = [chance.sample(range(40), chance.randrange(1, 12)) for _ in range(4)]
    for _ in range(60):
        table = chance.choice(blocks)
        match chance.randrange(3):
            case 0:
                table.append(chance.randrange(40))
            case 1:
                table[chance.randrange(len(table))] = chance.randrange(40)
            case 2:
                chance.shuffle(blocks)
        plans = [Plan(i, 1, 4 * len(each) - 2, list(each)) for i, each in enumerate(blocks[: chance.randrange(1, 5)])]
        found = pack_plans(plans, 4, [kind], 1, tables=tables).entries.tolist()
        assert found == [block for plan in plans for block in plan.blocks]
