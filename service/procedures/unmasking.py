"""Which positions of a canvas a forward sets: one pure function a rule, from what was read there to indices of the readings.

Readings are those of the positions that are not set yet, in their order. Confidence and margin are plain probabilities, at
temperature 1, whatever the tokens are drawn at, as in LLaDA and Fast-dLLM; entropy is that of the distribution which they
are drawn from (plain for greedy ones), which its bound is about.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.procedures.types import Reading


def share(length: int, steps: int, step: int) -> int:
    """Positions of a canvas that are due in this step (from 0) of `steps`: evenly, the rest in the first ones.

    LLaDA, arXiv 2502.09992; diffusers' BlockRefinementScheduler with a mask token.
    """
    return length // steps + (min(step, steps - 1) < length % steps)


def owed(length: int, steps: int, step: int, accepted: int) -> int:
    """The same where noise is random tokens: what is missing of the total that is due after this step.

    DiffusionGemma; diffusers' BlockRefinementScheduler without a mask token.
    """
    return max(0, -(-(step + 1) * length // steps) - accepted)


def highest(measure: Sequence[float], count: int) -> set[int]:
    """The `count` with the highest measure, the leftmost of equals."""
    return set(sorted(range(len(measure)), key=lambda i: -measure[i])[:count])


def above(readings: Sequence[Reading], threshold: float) -> set[int]:
    """All whose confidence exceeds the threshold (Fast-dLLM, arXiv 2505.22618)."""
    return {i for i, reading in enumerate(readings) if reading.confidence > threshold}


def by_factor(readings: Sequence[Reading], factor: float) -> set[int]:
    """The n surest, for the largest n with (n + 1)(1 - c_n) < factor, c_n being the n-th highest confidence.

    Fast-dLLM, arXiv 2505.22618, "factor-based" decoding: the surer they are, the more. The left side grows with n, so the
    first that fails ends it. With factor 1, what is set together greedily is what would be set one by one (theorem 1).
    """
    ordered = sorted((reading.confidence for reading in readings), reverse=True)
    count = next((n for n, c in enumerate(ordered) if (n + 2) * (1.0 - c) >= factor), len(ordered))
    return highest([reading.confidence for reading in readings], count)


def within_entropy(readings: Sequence[Reading], bound: float) -> set[int]:
    """Those with the lowest entropies, as many as keep (sum of entropies) - (largest of them) <= bound; at least one.

    That difference bounds the joint mutual information, and with it the error of drawing them independently: arXiv
    2505.24857; diffusers' EntropyBoundScheduler.
    """
    chosen: set[int] = set()
    total = 0.0
    for i in sorted(range(len(readings)), key=lambda i: entropy(readings[i])):
        if total > bound:
            break
        chosen.add(i)
        total += entropy(readings[i])
    return chosen


def entropy(reading: Reading) -> float:
    assert reading.entropy is not None, "the row asked for it"
    return reading.entropy


def margin(reading: Reading) -> float:
    assert reading.margin is not None, "the row asked for it"
    return reading.margin
