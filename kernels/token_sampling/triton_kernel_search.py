"""Which tokens top-k and top-p leave, without a sort: the border is searched among the float32 values of the logits.

Logits are ordered by their bits. A row's border lies in an interval of these keys; a pass counts the tokens from eight
evenly spaced keys of it on, and what they weigh, which narrows the interval to an eighth or less, to the keys that occur
in it. `narrow` is one pass for every row that is not done: top-k first, then top-p in what it left. Weights are fixed-point
numbers, so that their sums are exact, and the tokens kept are the same however a row is divided.

The result: tokens above the key `low` are kept, and the first `ties` of those that have this key (all where `ties` is -1).
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.dispatch import Instance
from kernels.token_sampling.triton_kernel import COLDEST, DRAWN, FIELDS, SCORE, WARPS, race, row_max, span_tokens

WAYS = tl.constexpr(8)
PASSES = 11
"""Passes that narrow 2^32 keys to one, eight ways."""
UNIT = tl.constexpr(17592186044416.0)
"""2^44: what the likeliest token weighs. The weights of fewer than 2^19 tokens fit a signed word."""

# Fields of a row's search, [rows, STATE] int64; its parts are [rows, parts, 2 WAYS + 2] int64.
TOP_K, TOP_P, DONE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
PHASE, LOW, HIGH, ABOVE, ABOVE_WEIGHT, GOAL, CUT, FLOOR, TIES, STATE = (tl.constexpr(i) for i in range(10))
LOWEST_KEY = tl.constexpr(-(1 << 31))
COLUMNS = tl.constexpr(18)


@triton.jit
def key_of(logit):
    """int32 in the order of the logits; 0 and -0 are one."""
    bits = tl.where(logit == 0.0, 0.0, logit).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def weight_of(logit, most, temperature):
    """exp((logit - most) / temperature) in units of 2^-44."""
    return (tl.exp((logit - most) / temperature) * UNIT).to(tl.int64)


@triton.jit
def begin(row, temperature, top_k, top_p, min_p, most, vocabulary):
    """Phase, low, high and goal of a row's search before its first pass, and whether the row has filters at all."""
    k, p = tl.load(top_k + row), tl.load(top_p + row)
    warm = tl.load(temperature + row) >= COLDEST
    by_k, by_p = warm & (k > 0) & (k < vocabulary), warm & (p < 1.0)
    filters = warm & ((k > 0) | by_p | (tl.load(min_p + row) > 0.0))
    phase = tl.where(by_k, TOP_K, tl.where(by_p, TOP_P, DONE)).to(tl.int64)
    low = tl.full((), LOWEST_KEY, tl.int64)
    return phase, low, key_of(most).to(tl.int64) + 1, tl.where(by_k, k, -1), filters


@triton.jit
def advance(row, source, counts, most, p, PARTS: tl.constexpr, PADDED: tl.constexpr):
    """The search of a row after the pass that left `counts`, from its fields at `source` before that pass."""
    source += row * STATE
    phase, low, high = tl.load(source + PHASE), tl.load(source + LOW), tl.load(source + HIGH)
    above, above_weight, goal = tl.load(source + ABOVE), tl.load(source + ABOVE_WEIGHT), tl.load(source + GOAL)
    cut, floor, ties = tl.load(source + CUT), tl.load(source + FLOOR), tl.load(source + TIES)
    if phase != DONE:
        part, way = tl.arange(0, PADDED), tl.arange(0, WAYS)
        at = counts + (row * PARTS + part) * COLUMNS
        there = part < PARTS
        here = at[:, None] + way[None, :]
        count = tl.sum(tl.load(here, there[:, None], 0), 0)
        weight = tl.sum(tl.load(here + WAYS, there[:, None], 0), 0)
        lowest = tl.min(tl.load(at + 2 * WAYS, there, 1 << 31))
        highest = tl.max(tl.load(at + 2 * WAYS + 1, there, -(1 << 31)))
        threshold = low + (high - low) * way // WAYS
        # Top-p is a share of all where top-k has not said of what.
        whole = tl.max(weight)
        goal = tl.where(goal < 0, share_of(p, whole), goal)
        enough = tl.where(phase == TOP_K, count, weight) >= goal
        enough = enough | (way == 0)
        low = tl.maximum(tl.max(tl.where(enough, threshold, low)), lowest)
        high = tl.minimum(tl.min(tl.where(enough, high, threshold)), highest + 1)
        reached = tl.min(tl.where(enough, count, 1 << 40))
        reached_weight = tl.min(tl.where(enough, weight, (1 << 63) - 1))
        above = tl.maximum(above, tl.max(tl.where(enough, 0, count)))
        above_weight = tl.maximum(above_weight, tl.max(tl.where(enough, 0, weight)))
        one_key, inside = high - low <= 1, reached - above
        each = (reached_weight - above_weight) // tl.maximum(inside, 1)
        if phase == TOP_K:
            if (reached == goal) | one_key:
                left = goal - above
                ties = tl.where(reached == goal, -1, left)
                cut = reached - goal
                kept_weight = reached_weight - cut * each
                floor = low
                phase = tl.where(p < 1.0, TOP_P, DONE).to(tl.int64)
                goal = share_of(p, kept_weight)
                high = tl.where(p < 1.0, key_of(most).to(tl.int64) + 1, high)
                above = tl.full((), 0, tl.int64)
                above_weight = tl.full((), 0, tl.int64)
        elif (inside <= 1) | one_key:
            needed = (goal - above_weight + each - 1) // tl.maximum(each, 1)
            available = inside - tl.where(low == floor, cut, 0)
            ties = tl.where(inside <= 1, -1, tl.minimum(tl.maximum(needed, 1), available))
            phase = tl.full((), DONE, tl.int64)
    return phase, low, high, above, above_weight, goal, cut, floor, ties


@triton.jit
def share_of(p, whole):
    """The least sum of weights that is top_p of the whole, and no nothing."""
    share = tl.ceil(p.to(tl.float64) * whole.to(tl.float64)).to(tl.int64)
    return tl.minimum(tl.maximum(share, 1), tl.maximum(whole, 1))


@triton.jit
def narrow(
    logits, temperature, top_k, top_p, min_p, parts, source, target, counts_in, counts_out, vocabulary, stride,
    FIRST: tl.constexpr, SPAN: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """One pass over one part of one row. Fields and counts are read from one buffer and written to another, since the
    other programs of the row read them at the same time."""
    row, part = tl.program_id(0), tl.program_id(1)
    most, p = row_max(parts, row, PARTS, PADDED), tl.load(top_p + row)
    if FIRST:
        phase, low, high, goal, _ = begin(row, temperature, top_k, top_p, min_p, most, vocabulary)
        above, above_weight, cut = (tl.full((), 0, tl.int64),) * 3
        floor, ties = low - 1, tl.full((), -1, tl.int64)
    else:
        phase, low, high, above, above_weight, goal, cut, floor, ties = advance(row, source, counts_in, most, p, PARTS, PADDED)
    if part == 0:
        at = target + row * STATE
        tl.store(at + PHASE, phase)
        tl.store(at + LOW, low)
        tl.store(at + HIGH, high)
        tl.store(at + ABOVE, above)
        tl.store(at + ABOVE_WEIGHT, above_weight)
        tl.store(at + GOAL, goal)
        tl.store(at + CUT, cut)
        tl.store(at + FLOOR, floor)
        tl.store(at + TIES, ties)
    if phase != DONE:
        token = part * SPAN + tl.arange(0, SPAN)
        there = token < vocabulary
        logit = tl.load(logits + row.to(tl.int64) * stride + token, there, float("-inf"))
        key = key_of(logit)
        at = counts_out + (row * PARTS + part) * COLUMNS
        inside = there & (key >= low.to(tl.int32)) & (key <= (high - 1).to(tl.int32))
        tl.store(at + 2 * WAYS, tl.min(tl.where(inside, key, 0x7FFFFFFF)).to(tl.int64))
        tl.store(at + 2 * WAYS + 1, tl.max(tl.where(inside, key, LOWEST_KEY)).to(tl.int64))
        for way in tl.static_range(WAYS):
            from_here = there & (key >= (low + (high - low) * way // WAYS).to(tl.int32))
            tl.store(at + way, tl.sum(from_here.to(tl.int32)).to(tl.int64))
        if p < 1.0:
            weight = weight_of(logit, tl.where(most > float("-inf"), most, 0.0), tl.load(temperature + row))
            for way in tl.static_range(WAYS):
                from_here = there & (key >= (low + (high - low) * way // WAYS).to(tl.int32))
                tl.store(at + WAYS + way, tl.sum(tl.where(from_here, weight, 0)))
        else:
            for way in tl.static_range(WAYS):
                tl.store(at + WAYS + way, tl.full((), 0, tl.int64))


@triton.jit
def draw_filtered(
    logits, temperature, top_k, top_p, min_p, seeds, numbers, parts, tokens, source, counts, vocabulary, stride, purpose,
    SEARCHED: tl.constexpr, SPAN: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """The winner of one part of one row that has filters, among the tokens that these leave."""
    row, part = tl.program_id(0), tl.program_id(1)
    most = row_max(parts, row, PARTS, PADDED)
    _, _, _, _, filters = begin(row, temperature, top_k, top_p, min_p, most, vocabulary)
    if filters:
        base = tl.where(most > float("-inf"), most, 0.0)
        heat = tl.load(temperature + row)
        logits += row.to(tl.int64) * stride
        token = span_tokens(part, SPAN)
        logit = tl.load(logits + token, token < vocabulary, float("-inf"))
        kept = (token < vocabulary) & (tl.exp((logit - base) / heat) >= tl.load(min_p + row))
        if SEARCHED:
            p = tl.load(top_p + row)
            _, low, _, _, _, _, _, _, ties = advance(row, source, counts, most, p, PARTS, PADDED)
            border = low.to(tl.int32)
            key = key_of(logit)
            if ties < 0:
                kept = kept & (key >= border)
            else:
                last = last_tie(logits, border, ties, vocabulary, SPAN)
                kept = kept & ((key > border) | ((key == border) & (token <= last)))
        score, winner = race(
            logits, logit, token, kept, base, heat, tl.load(seeds + row), tl.load(numbers + row), purpose, part, SPAN
        )
        tl.store(parts + (row * FIELDS + SCORE) * PARTS + part, score)
        tl.store(tokens + (row * 2 + DRAWN) * PARTS + part, winner.to(tl.int64))


@triton.jit
def last_tie(logits, border, ties, vocabulary, SPAN: tl.constexpr):
    """The token that is number `ties` of those with the key `border`."""
    found, last = tl.full((), 0, tl.int32), tl.full((), -1, tl.int32)
    for start in range(0, vocabulary, SPAN):
        token = start + tl.arange(0, SPAN)
        tie = (token < vocabulary) & (key_of(tl.load(logits + token, token < vocabulary, float("-inf"))) == border)
        number = found + tl.cumsum(tie.to(tl.int32), 0)
        last = tl.maximum(last, tl.max(tl.where(tie & (number <= ties), token, -1)))
        found += tl.sum(tie.to(tl.int32))
    return last


_FILTERS = {"temperature": "*fp32", "top_k": "*i64", "top_p": "*fp32", "min_p": "*fp32"}
_SIZES = {"SPAN": "constexpr", "PARTS": "constexpr", "PADDED": "constexpr"}
_NARROW = {
    "logits": "*fp32", **_FILTERS, "parts": "*fp64", "source": "*i64", "target": "*i64", "counts_in": "*i64",
    "counts_out": "*i64", "vocabulary": "i32", "stride": "i32", "FIRST": "constexpr", **_SIZES,
}  # fmt: skip
_DRAW = {
    "logits": "*fp32", **_FILTERS, "seeds": "*i64", "numbers": "*i64", "parts": "*fp64", "tokens": "*i64", "source": "*i64",
    "counts": "*i64", "vocabulary": "i32", "stride": "i32", "purpose": "i32", "SEARCHED": "constexpr", **_SIZES,
}  # fmt: skip
AOT = [
    Instance(function, signature, {flag: on, "SPAN": span, "PARTS": parts, "PADDED": padded}, {"num_warps": WARPS[span]})
    for function, signature, flag in ((narrow, _NARROW, "FIRST"), (draw_filtered, _DRAW, "SEARCHED"))
    for on in (True, False)
    for span, parts, padded in ((8192, 19, 32), (256, 1, 1))
]  # fmt: skip
