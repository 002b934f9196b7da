"""Spending more at inference: several latents for one picture, of which a scorer chooses.

`best_of` refines them independently and keeps the best (search over initial noise, arXiv 2501.09732). `particles` is
Feynman-Kac steering (arXiv 2501.06848, algorithm 1): at some rows the data estimate of every latent is scored, and the latents
are resampled with weights G, so that those which promise little make place for copies of others. With r the score and T the
temperature (1 / lambda there), G of a latent is, from its line of ancestors (section 3.1),

    difference: exp((r - r_before) / T)      max: exp(max r so far / T)      sum: exp(sum of r so far / T)

Pure: nothing here knows a device, a clock or a stream of random numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

Potential = Literal["max", "difference", "sum"]
Count = Annotated[int, Meta(ge=2, le=256)]


class BestOf(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="method", tag="best_of"):
    """So many latents from noise of their own, refined independently; those with the highest scores are the outputs."""

    counted: ClassVar[str] = "candidates"
    scorer: str
    candidates: Count = 4

    @property
    def count(self) -> int:
        return self.candidates


class Particles(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="method", tag="particles"):
    """So many latents, resampled behind every `every`-th row of the sampler; those with the highest scores at the end are the
    outputs. A low temperature follows the scores closely, a high one hardly at all."""

    counted: ClassVar[str] = "particles"
    scorer: str
    particles: Count = 4
    temperature: Annotated[float, Meta(ge=1e-3, le=1e3)] = 0.1
    every: Annotated[int, Meta(ge=1, le=1000)] = 1
    potential: Potential = "max"

    @property
    def count(self) -> int:
        return self.particles


Search = BestOf | Particles
METHODS: dict[str, type[BestOf] | type[Particles]] = {"best_of": BestOf, "particles": Particles}


def resampling_rows(noise: Sequence[float], every: int) -> frozenset[int]:
    """Rows of a sampler table behind which latents are resampled; `noise` is the table's column d.

    A copy draws the noise of such a row, and all that comes after, for itself. Where there is none any more, copies would stay
    alike and end as one picture.
    """
    last = max((row for row, d in enumerate(noise) if d != 0.0), default=-1)
    return frozenset(row for row in range(last + 1) if (row + 1) % every == 0)


def potential(kind: Potential, temperature: float, before: float | None, score: float) -> tuple[float, float]:
    """(log G, what the latent's descendants are compared with). `before` is that of its ancestors, None at the first look."""
    match kind:
        case "difference":
            return (score - (before or 0.0)) / temperature, score
        case "max":
            best = score if before is None else max(before, score)
            return best / temperature, best
        case "sum":
            total = (before or 0.0) + score
            return total / temperature, total


def systematic(log_weights: Sequence[float], lot: float) -> list[int]:
    """Ancestors of as many descendants as there are weights: each has its share of them but for less than one, and that many on
    average over `lot`, a number in [0, 1). Equal weights leave all as they are."""
    highest = max(log_weights)
    weights = [math.exp(value - highest) for value in log_weights]
    step, last = sum(weights) / len(weights), max(i for i, weight in enumerate(weights) if weight > 0.0)
    ancestors: list[int] = []
    index, reached = 0, weights[0]
    for number in range(len(weights)):
        while reached <= (lot + number) * step and index < last:
            index += 1
            reached += weights[index]
        ancestors.append(index)
    return ancestors


def in_place(ancestors: Sequence[int]) -> list[int]:
    """The same ancestors in an order that leaves every latent with descendants as one of its own: the fewest copies."""
    left = Counter(ancestors)
    stays = [left[place] > 0 for place in range(len(ancestors))]
    left.subtract(place for place, stay in enumerate(stays) if stay)
    others = iter(sorted(left.elements()))
    return [place if stay else next(others) for place, stay in enumerate(stays)]
