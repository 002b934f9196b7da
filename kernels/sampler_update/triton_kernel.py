"""The sampler update in Triton: guidance, fresh noise, the update and the estimate of the data, each number read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import Instance
from kernels.philox_triton import normal_pair, philox4x32, seed_words
from kernels.sampler_update.terms import Guidance, Noise, Update

BLOCK = 1024


@triton.jit
def drawn_normals(seed, draw, purpose, first, QUADS: tl.constexpr):
    """Numbers 4 `first` and on, 4 QUADS of them, of the stream that `kernels.philox.normal` draws."""
    seed_lo, seed_hi = seed_words(seed)
    draw_lo, draw_hi = seed_words(draw)
    counter = (first + tl.arange(0, QUADS)).to(tl.uint32)
    zero = tl.zeros((QUADS,), tl.uint32)
    kind = tl.full((QUADS,), purpose, tl.uint32)
    words = philox4x32(zero + seed_lo, zero + seed_hi, counter, zero + draw_lo, kind, zero + draw_hi)
    n0, n1 = normal_pair(words[0], words[1])
    n2, n3 = normal_pair(words[2], words[3])
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit
def update_rows(
    x, f, h1, h2, eps, unconditional, coefficients, seeds, draws, partner, scales, estimates, out, size, x_row, f_row, h1_row,
    h2_row, eps_row, unconditional_row, out_row, purpose,
    GIVEN: tl.constexpr, DRAWN: tl.constexpr, GUIDED: tl.constexpr, ESTIMATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Row r of `out` is x', h1', h2' and, where ESTIMATED, the estimate, one behind the other."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = place < size
    a, b = tl.load(coefficients + row * 7), tl.load(coefficients + row * 7 + 1)
    c1, c2 = tl.load(coefficients + row * 7 + 2), tl.load(coefficients + row * 7 + 3)
    d = tl.load(coefficients + row * 7 + 4)
    p, q = tl.load(coefficients + row * 7 + 5), tl.load(coefficients + row * 7 + 6)
    state = tl.load(x + row * x_row + place, mask=here, other=0.0).to(tl.float32)
    output = tl.load(f + row * f_row + place, mask=here, other=0.0).to(tl.float32)
    former = tl.load(h1 + row * h1_row + place, mask=here, other=0.0).to(tl.float32)
    earlier = tl.load(h2 + row * h2_row + place, mask=here, other=0.0).to(tl.float32)
    if GUIDED:
        other = tl.load(partner + row)
        if other >= 0:
            start = unconditional + other * unconditional_row
            without = tl.load(start + place, mask=here, other=0.0).to(tl.float32)
            output = without + tl.load(scales + row) * (output - without)
    moved = a * state + b * output + c1 * former + c2 * earlier
    if GIVEN:
        moved += d * tl.load(eps + row * eps_row + place, mask=here, other=0.0).to(tl.float32)
    if DRAWN:  # noqa: SIM102 - known when compiled, the other when run
        if d != 0.0:
            first = tl.program_id(1) * (BLOCK // 4)
            moved += d * drawn_normals(tl.load(seeds + row), tl.load(draws + row), purpose, first, BLOCK // 4)
    target = out + row * out_row + place
    tl.store(target, moved, mask=here)
    tl.store(target + size, p * state + q * output, mask=here)
    tl.store(target + 2 * size, former, mask=here)
    if ESTIMATED:
        of_state, of_output = tl.load(estimates + row * 2), tl.load(estimates + row * 2 + 1)
        tl.store(target + 3 * size, of_state * state + of_output * output, mask=here)


def sampler_step(
    x: Tensor,
    f: Tensor,
    h1: Tensor,
    h2: Tensor,
    coefficients: Tensor,
    eps: Tensor | None,
    noise: Noise | None,
    guidance: Guidance | None,
    estimates: Tensor | None,
) -> Update:
    size = x[0].numel() if len(x) else 0
    parts = 3 if estimates is None else 4
    out = torch.empty(len(x), parts, *x.shape[1:], dtype=torch.float32, device=x.device)
    state, output, former, earlier = (_rows(tensor) for tensor in (x, f, h1, h2))
    given = state if eps is None else _rows(eps)
    unconditional = output if guidance is None else _rows(guidance.unconditional)
    coefficients = coefficients.float().contiguous()
    if out.numel():
        update_rows[(len(x), triton.cdiv(size, BLOCK))](
            state, output, former, earlier, given, unconditional, coefficients,
            coefficients if noise is None else noise.seeds.contiguous(),
            coefficients if noise is None else noise.draws.contiguous(),
            coefficients if guidance is None else guidance.partner.contiguous(),
            coefficients if guidance is None else guidance.scale.float().contiguous(),
            coefficients if estimates is None else estimates.float().contiguous(),
            out, size, state.stride(0), output.stride(0), former.stride(0), earlier.stride(0), given.stride(0),
            unconditional.stride(0), parts * size, 0 if noise is None else noise.purpose,
            GIVEN=eps is not None, DRAWN=noise is not None, GUIDED=guidance is not None, ESTIMATED=estimates is not None,
            BLOCK=BLOCK,
        )  # fmt: skip
    return Update(out[:, 0], out[:, 1], out[:, 2], None if estimates is None else out[:, 3])


def _rows(tensor: Tensor) -> Tensor:
    """[R, elements], each row contiguous; no copy of slices of a store."""
    rows = tensor.flatten(1)
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _instance(given: bool, drawn: bool, guided: bool, estimated: bool, output: str) -> Instance:
    signature = dict.fromkeys(("x", "h1", "h2", "eps", "coefficients", "scales", "estimates", "out"), "*fp32")
    signature |= {"f": f"*{output}", "unconditional": f"*{output}", **dict.fromkeys(("seeds", "draws", "partner"), "*i64")}
    counts = ("size", "x_row", "f_row", "h1_row", "h2_row", "eps_row", "unconditional_row", "out_row")
    signature |= {"purpose": "i32", **dict.fromkeys(counts, "i32:16")}
    constants = {"GIVEN": given, "DRAWN": drawn, "GUIDED": guided, "ESTIMATED": estimated, "BLOCK": BLOCK}
    return Instance(update_rows, {**signature, **dict.fromkeys(constants, "constexpr")}, constants)


AOT = [_instance(False, True, True, True, "fp32"), _instance(True, False, False, False, "bf16")]
