"""Token sampling in Triton: one pass over the logits where a row has no filter, a search for the filters' border otherwise.

A row is shared by programs of `span` tokens, each of which leaves its part of the statistics: `read` does that for all rows
and draws in those without filters, `search.narrow` finds which tokens top-k and top-p leave, `draw_filtered` draws there,
and `finish` puts the parts together. Every part of a row is added in the same order whatever the batch is.

The race of Gumbel numbers is decided in float64, as in the reference, but measured in float32 first: only tokens that come
within the float32 error of the winner are measured again. The winner is the reference's, save where two scores differ by
less than some 1e-14, which is how far float64 logarithms of devices, and l/T and (l - max)/T, are apart. Equal scores go to
the lower token.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.dispatch import Instance
from kernels.philox_triton import gumbel, philox4x32, seed_words

COLDEST = tl.constexpr(1e-5)
NONE = tl.constexpr(1 << 30)
"""No token: more than any vocabulary has."""

# Fields of a row's parts, [rows, FIELDS, parts] float64, and of its tokens, [rows, 2, parts] int64.
MAX, SECOND, PLAIN, WARM, MOMENT, SCORE, FIELDS = (tl.constexpr(i) for i in range(7))
LIKELIEST, DRAWN = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def span_tokens(part, SPAN: tl.constexpr):
    """The tokens of a part as [4, SPAN / 4]: those of a column share a counter, and row k takes word k of it."""
    column, word = tl.arange(0, SPAN // 4)[None, :], tl.arange(0, 4)[:, None]
    return part * SPAN + column // 16 * 64 + word * 16 + column % 16


@triton.jit
def span_words(part, seed, number, purpose, SPAN: tl.constexpr):
    """A random word for each of `span_tokens`."""
    seed_lo, seed_hi = seed_words(seed)
    number_lo, number_hi = seed_words(number)
    counter = (part * (SPAN // 4) + tl.arange(0, SPAN // 4)).to(tl.uint32)
    words = philox4x32(seed_lo, seed_hi, counter, number_lo, tl.cast(purpose, tl.uint32), number_hi)
    row = tl.arange(0, 4)[:, None]
    upper = tl.where(row == 0, words[0][None, :], words[1][None, :])
    return tl.where(row < 2, upper, tl.where(row == 2, words[2][None, :], words[3][None, :]))


@triton.jit
def exact_gumbel(token, seed, number, purpose):
    """The float64 Gumbel number of one token."""
    seed_lo, seed_hi = seed_words(seed)
    number_lo, number_hi = seed_words(number)
    counter = (token // 64 * 16 + token % 16).to(tl.uint32)
    words = philox4x32(seed_lo, seed_hi, counter, number_lo, tl.cast(purpose, tl.uint32), number_hi)
    row = token // 16 % 4
    upper = tl.where(row == 0, words[0], words[1])
    return gumbel(tl.where(row < 2, upper, tl.where(row == 2, words[2], words[3])))


@triton.jit
def rough_gumbel(word):
    """The same in float32, to about 1e-4: where u is near 1, -log u by its series in 1 - u, which has all its digits."""
    u = (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    away = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    return -tl.log(tl.where(away < 0.01, away * (1.0 + away * (0.5 + away * 0.3333333)), -tl.log(u)))


@triton.jit
def race(row, logit, token, open_, shift, temperature, seed, number, purpose, part, SPAN: tl.constexpr):
    """Score, float64, and token of the highest (logit - shift) / temperature + Gumbel number among `open_` tokens.

    row points at the row's logits. Without open tokens the score is -inf.
    """
    rough = (logit - shift) / temperature + rough_gumbel(span_words(part, seed, number, purpose, SPAN))
    rough = tl.where(open_ & (logit > float("-inf")), rough, float("-inf"))
    top = tl.max(rough)
    bound = top - 1e-3 - 1e-6 * tl.abs(top)
    near = (rough >= bound) & (rough > float("-inf"))
    best, winner = tl.full((), float("-inf"), tl.float64), tl.full((), NONE, tl.int32)
    candidate = tl.min(tl.where(near, token, NONE))
    while candidate < NONE:
        x = (tl.load(row + candidate).to(tl.float64) - shift.to(tl.float64)) / temperature.to(tl.float64)
        score = x + exact_gumbel(candidate, seed, number, purpose)
        winner = tl.where(score > best, candidate, winner)
        best = tl.maximum(score, best)
        candidate = tl.min(tl.where(near & (token > candidate), token, NONE))
    return best, winner


@triton.jit
def row_max(parts, row, PARTS: tl.constexpr, PADDED: tl.constexpr):
    at = tl.arange(0, PADDED)
    return tl.max(tl.load(parts + (row * FIELDS + MAX) * PARTS + at, at < PARTS, float("-inf"))).to(tl.float32)


@triton.jit
def read(
    logits, temperature, warmth, top_k, top_p, min_p, seeds, numbers, parts, tokens,
    vocabulary, stride, purpose, MEASURED: tl.constexpr, DRAWS: tl.constexpr, SPAN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One part of one row: its two highest logits, its sums of exponentials, and its winner where the row has no filter."""
    row, part = tl.program_id(0), tl.program_id(1)
    logits += row.to(tl.int64) * stride
    token = span_tokens(part, SPAN)
    logit = tl.load(logits + token, token < vocabulary, float("-inf"))
    most = tl.max(logit)
    likeliest = tl.min(tl.where(logit == most, token, NONE))
    own = parts + row * FIELDS * PARTS + part
    base = tl.where(most > float("-inf"), most, 0.0)
    x = logit - base
    plain = tl.exp(x)
    tl.store(own + MAX * PARTS, most.to(tl.float64))
    tl.store(own + PLAIN * PARTS, tl.sum(plain).to(tl.float64))
    tl.store(tokens + (row * 2 + LIKELIEST) * PARTS + part, likeliest.to(tl.int64))
    if MEASURED:
        tl.store(own + SECOND * PARTS, tl.max(tl.where(token == likeliest, float("-inf"), logit)).to(tl.float64))
        x = x / tl.load(warmth + row)
        warm = tl.exp(x)
        tl.store(own + WARM * PARTS, tl.sum(warm).to(tl.float64))
        tl.store(own + MOMENT * PARTS, tl.sum(tl.where(warm > 0.0, x * warm, 0.0)).to(tl.float64))
    if DRAWS:
        heat = tl.load(temperature + row)
        filters = (tl.load(top_k + row) > 0) | (tl.load(top_p + row) < 1.0) | (tl.load(min_p + row) > 0.0)
        if (heat >= COLDEST) & (filters == 0):
            there, zero = token < vocabulary, tl.full((), 0.0, tl.float32)
            seed, number = tl.load(seeds + row), tl.load(numbers + row)
            score, winner = race(logits, logit, token, there, zero, heat, seed, number, purpose, part, SPAN)
            tl.store(own + SCORE * PARTS, score)
            tl.store(tokens + (row * 2 + DRAWN) * PARTS + part, winner.to(tl.int64))


@triton.jit
def finish(
    logits, temperature, warmth, parts, tokens, token_out, confidence_out, entropy_out, margin_out, likeliest_out,
    vocabulary, stride, MEASURED: tl.constexpr, DRAWS: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """What the parts of a row make together."""
    row = tl.program_id(0)
    at = tl.arange(0, PADDED)
    there = at < PARTS
    own = parts + row * FIELDS * PARTS + at
    named = tokens + row * 2 * PARTS + at
    highest = tl.load(own + MAX * PARTS, there, float("-inf"))
    most = tl.max(highest)
    leading = tl.load(named + LIKELIEST * PARTS, there, NONE)
    greedy = tl.min(tl.where(highest == most, leading, NONE))
    greedy = tl.where(greedy < vocabulary, greedy, 0)
    part_scale = tl.exp(highest - most)
    plain = tl.sum(tl.where(there, tl.load(own + PLAIN * PARTS, there, 0.0) * part_scale, 0.0))
    token = greedy
    if DRAWS:  # noqa: SIM102 (one is known when the kernel is compiled)
        if tl.load(temperature + row) >= COLDEST:
            score = tl.load(own + SCORE * PARTS, there, float("-inf"))
            best = tl.max(score)
            drawn = tl.load(named + DRAWN * PARTS, there, NONE)
            winner = tl.min(tl.where((score == best) & (score > float("-inf")), drawn, NONE))
            token = tl.where(winner < vocabulary, winner, greedy)
    chosen = tl.load(logits + row.to(tl.int64) * stride + token).to(tl.float64)
    tl.store(token_out + row, token)
    tl.store(confidence_out + row, (tl.exp(chosen - most) / plain).to(tl.float32))
    if MEASURED:
        # The second of the row is the second of the part that leads, or the first of another.
        second = tl.where(leading == greedy, tl.load(own + SECOND * PARTS, there, float("-inf")), highest)
        second = tl.max(tl.where(there, second, float("-inf")))
        away = (highest - most) / tl.load(warmth + row).to(tl.float64)
        scale = tl.exp(away)
        warm = tl.load(own + WARM * PARTS, there, 0.0)
        moment = tl.load(own + MOMENT * PARTS, there, 0.0) + tl.where(scale > 0.0, away * warm, 0.0)
        total = tl.sum(tl.where(scale > 0.0, warm * scale, 0.0))
        moment = tl.sum(tl.where(scale > 0.0, moment * scale, 0.0))
        tl.store(entropy_out + row, tl.maximum(tl.log(total) - moment / total, 0.0).to(tl.float32))
        tl.store(margin_out + row, ((1.0 - tl.exp(second - most)) / plain).to(tl.float32))
        tl.store(likeliest_out + row, greedy)


_READ = {
    "logits": "*fp32", "temperature": "*fp32", "warmth": "*fp32", "top_k": "*i64", "top_p": "*fp32", "min_p": "*fp32",
    "seeds": "*i64", "numbers": "*i64", "parts": "*fp64", "tokens": "*i64", "vocabulary": "i32", "stride": "i32",
    "purpose": "i32", "MEASURED": "constexpr", "DRAWS": "constexpr", "SPAN": "constexpr", "PARTS": "constexpr",
}  # fmt: skip
_FINISH = {
    "logits": "*fp32", "temperature": "*fp32", "warmth": "*fp32", "parts": "*fp64", "tokens": "*i64", "token_out": "*i64",
    "confidence_out": "*fp32", "entropy_out": "*fp32", "margin_out": "*fp32", "likeliest_out": "*i64", "vocabulary": "i32",
    "stride": "i32", "MEASURED": "constexpr", "DRAWS": "constexpr", "PARTS": "constexpr", "PADDED": "constexpr",
}  # fmt: skip
WARPS = {64: 1, 128: 1, 256: 1, 512: 2, 1024: 4, 2048: 4, 4096: 8, 8192: 16}
"""Warps of a program by its span."""

AOT = [
    *(
        Instance(read, _READ, {"MEASURED": measured, "DRAWS": draws, "SPAN": span, "PARTS": parts}, {"num_warps": WARPS[span]})
        for measured, draws, span, parts in (
            (False, False, 8192, 19), (False, True, 8192, 19), (True, True, 8192, 19), (True, True, 256, 1)
        )
    ),
    *(
        Instance(finish, _FINISH, {"MEASURED": True, "DRAWS": True, "PARTS": parts, "PADDED": padded}, {"num_warps": 1})
        for parts, padded in ((19, 32), (1, 1))
    ),
]  # fmt: skip
