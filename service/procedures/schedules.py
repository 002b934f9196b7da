"""Where a schedule puts its nodes between the noisiest and the cleanest one, in whatever coordinate is spaced.

Karras et al., arXiv 2206.00364, eq. 5; exponential: even in the logarithm; beta: quantiles of Beta(0.6, 0.6), arXiv
2407.12173, which crowd at both ends. Even in the angle atan(sigma / alpha), and so as a cosine, is `cosine` (Nichol and Dhariwal,
arXiv 2102.09672; the coordinate is the caller's).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

Schedule = Literal["linear", "cosine", "karras", "exponential", "beta"]

_LARGEST_TERMS = 300


def evenly(high: float, low: float, count: int) -> list[float]:
    """`count` numbers from high to low, both included; high alone for one."""
    if count == 1:
        return [high]
    step = (low - high) / (count - 1)
    return [*(high + i * step for i in range(count - 1)), low]


def karras(high: float, low: float, count: int, rho: float = 7.0) -> list[float]:
    """Even in the power 1 / rho; larger rho, more nodes near low."""
    return [root**rho for root in evenly(high ** (1.0 / rho), low ** (1.0 / rho), count)]


def exponential(high: float, low: float, count: int) -> list[float]:
    """Even in the logarithm."""
    return [math.exp(log) for log in evenly(math.log(high), math.log(low), count)]


def beta(high: float, low: float, count: int) -> list[float]:
    """Quantiles of Beta(0.6, 0.6) at even probabilities."""
    return [low + beta_quantile(probability, 0.6, 0.6) * (high - low) for probability in evenly(1.0, 0.0, count)]


def spaced(schedule: Schedule, high: float, low: float, count: int) -> list[float]:
    """Nodes from high to low > 0 by a schedule; "cosine" expects angles. Raises ValueError where the logarithm of low is none."""
    if not (low > 0.0 and math.isfinite(high)) and schedule not in ("linear", "cosine"):
        raise ValueError(f"`schedule` {schedule} needs a range of noise levels that are positive and finite, not {high} to {low}")
    match schedule:
        case "linear" | "cosine":
            return evenly(high, low, count)
        case "karras":
            return karras(high, low, count)
        case "exponential":
            return exponential(high, low, count)
        case "beta":
            return beta(high, low, count)


@lru_cache(maxsize=4096)
def beta_quantile(probability: float, a: float, b: float) -> float:
    """The x in [0, 1] below which a Beta(a, b) variable is with this probability; by Newton's method between bounds, to float64's
    rounding."""
    if probability in (0.0, 1.0):
        return probability
    if probability > 0.5:
        return 1.0 - beta_quantile(1.0 - probability, b, a)
    whole = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    low, high = 0.0, 1.0
    x = min(math.exp((math.log(probability * a) + whole) / a), 0.5)  # exact in the limit of small ones
    for _ in range(200):
        beyond = beta_probability(x, a, b) - probability
        low, high = (x, high) if beyond < 0.0 else (low, x)
        closer = x - beyond * math.exp(whole - (a - 1.0) * math.log(x) - (b - 1.0) * math.log1p(-x))
        closer = closer if low <= closer <= high else 0.5 * (low + high)
        if abs(closer - x) <= 4e-15 * x:
            break
        x = closer
    return x


def beta_probability(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz's method)."""
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - beta_probability(1.0 - x, b, a)
    if x <= 0.0:
        return 0.0
    front = math.exp(a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)) / a
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0))
    fraction = d
    for m in range(1, _LARGEST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for numerator in (even, odd):
            d = 1.0 / (1.0 + numerator * d)
            c = 1.0 + numerator / c
            fraction *= c * d
        if abs(c * d - 1.0) < 1e-16:
            break
    return front * fraction
