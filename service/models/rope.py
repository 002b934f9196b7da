"""Rotary position embedding, its variants reduced to one form: what each frequency is divided by, and an amplitude."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """Angle i of position p is p * theta^(-2i/dim) / factors[i] (arXiv 2104.09864).

    Only the first `dim` numbers of a head turn (None: all); cos and sin are multiplied by `amplitude`; no `factors`:
    all are 1.
    """

    theta: float = 10_000.0
    dim: int | None = None
    factors: tuple[float, ...] = ()
    amplitude: float = 1.0


def rotary_angles(positions: Tensor, rope: Rope, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 1, dim] in float32 for positions [N]; the halves are paired as in Qwen and Llama.

    The sines of the first half are negative: `rotate` then only has to swap the halves.
    """
    dim = rope.dim or head_dim
    exponents = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.factors:
        frequencies = frequencies / _factors(rope.factors, positions.device)
    angles = positions.float()[:, None, None] * frequencies
    cos, sin = angles.cos() * rope.amplitude, angles.sin() * rope.amplitude
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


@cache
def _factors(factors: tuple[float, ...], device: torch.device) -> Tensor:
    """Brought to a device once: a captured forward must not read the host's memory, nor any forward wait for it."""
    with torch.inference_mode(False):
        return torch.tensor(factors, device=device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + dim/2) of x [N, H, D] by the angles of `rotary_angles`; what lies behind dim stays."""
    dim = cos.shape[-1]
    turning, rest = (x, None) if dim == x.shape[-1] else (x[..., :dim], x[..., dim:])
    low, high = turning.chunk(2, dim=-1)
    turned = torch.addcmul(turning * cos.to(x.dtype), torch.cat((high, low), dim=-1), sin.to(x.dtype))
    return turned if rest is None else torch.cat((turned, rest), dim=-1)


_OWN_KEYS = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    },
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"},
    "proportional": {"factor"},
}  # fmt: skip
_SAME = {"su": "longrope"}


def rope_from_json(
    parameters: Mapping[str, Any], theta: float, head_dim: int, positions: int, context: int | None
) -> tuple[Rope, int]:
    """From `rope_parameters` or `rope_scaling` of a config.json, and the longest context that the result is right for.

    `theta` holds where the parameters do not say. `positions` is max_position_embeddings. `context` is how long texts
    will be: `longrope` has one set of factors for texts within the length of its first training, which is what it is
    limited to without a `context`, and another beyond. `dynamic` changes nothing up to `positions`, and ends there.
    Raises ValueError for a kind or a key that is not known, or a number that is missing.
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    kind = given.pop("rope_type", None) or given.pop("type", "default")
    given.pop("type", None)
    kind = _SAME.get(kind, kind)
    if kind not in _OWN_KEYS:
        raise ValueError(f"rope type {kind!r} is not supported; supported: {', '.join(_OWN_KEYS)}")
    theta = float(given.pop("rope_theta", theta))
    turning = int(head_dim * float(given.pop("partial_rotary_factor", 1.0)))
    dim = head_dim if kind == "proportional" else turning
    unknown = sorted(given.keys() - _OWN_KEYS[kind])
    if unknown:
        raise ValueError(f"rope parameter {unknown[0]} = {given[unknown[0]]!r} of type {kind} is not supported")
    if dim % 2 or not 0 < dim <= head_dim:
        raise ValueError(f"rope turns {dim} of {head_dim} numbers of a head; it must be an even number of them")
    original = int(given.get("original_max_position_embeddings", positions))
    try:
        factors, amplitude = _scaled(kind, given, theta, dim, positions, context or original)
        if kind == "proportional":
            # The frequencies are those of the whole head; the slow ones do not turn.
            factors = (float(given.get("factor", 1.0)),) * (turning // 2) + (math.inf,) * (dim // 2 - turning // 2)
    except KeyError as error:
        raise ValueError(f"rope parameter {error.args[0]} of type {kind} is missing") from None
    limit = positions
    if kind == "longrope" and (context is None or context <= original):
        limit = original
    elif kind == "yarn":
        limit = max(positions, int(original * float(given["factor"])))
    return Rope(theta, None if dim == head_dim else dim, factors, amplitude), limit


def _scaled(
    kind: str, given: Mapping[str, Any], theta: float, dim: int, positions: int, context: int
) -> tuple[tuple[float, ...], float]:
    """Factors and amplitude."""
    original = int(given.get("original_max_position_embeddings", positions))
    match kind:
        case "linear":
            return (float(given["factor"]),) * (dim // 2), 1.0
        case "llama3":
            return _llama3(given, theta, dim, original), 1.0
        case "yarn":
            return _yarn(given, theta, dim, original)
        case "longrope":
            factors = tuple(map(float, given["long_factor" if context > original else "short_factor"]))
            if len(factors) != dim // 2:
                raise ValueError(f"longrope has {len(factors)} factors, and there are {dim // 2} frequencies")
            stretch = float(given.get("factor", positions / original))
            amplitude = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
            return factors, float(given.get("attention_factor", amplitude))
    return (), 1.0


def _llama3(given: Mapping[str, Any], theta: float, dim: int, original: int) -> tuple[float, ...]:
    """Slow frequencies are divided, fast ones kept, those between blended (Llama 3.1)."""
    factor, low, high = (float(given[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    factors = []
    for i in range(0, dim, 2):
        turns = original * theta ** (-i / dim) / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / ((1 - kept) / factor + kept))
    return tuple(factors)


def _yarn(given: Mapping[str, Any], theta: float, dim: int, original: int) -> tuple[tuple[float, ...], float]:
    """YaRN, arXiv 2309.00071, section 3.2: a ramp over the dimensions between two numbers of turns."""
    factor = float(given["factor"])

    def dimension(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(float(given.get("beta_fast") or 32)), dimension(float(given.get("beta_slow") or 1))
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = [min(max((i - low) / ((high - low) or 0.001), 0.0), 1.0) for i in range(dim // 2)]

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    upper, lower = given.get("mscale"), given.get("mscale_all_dim")
    amplitude = mscale(float(upper)) / mscale(float(lower)) if upper and lower else mscale(1.0)
    return tuple(1.0 / (r / factor + (1 - r)) for r in ramp), float(given.get("attention_factor", amplitude))
