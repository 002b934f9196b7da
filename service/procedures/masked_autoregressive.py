"""Autoregression over continuous tokens (MAR, arXiv 2406.11838): both axes at once.

The tokens of a picture are made in sets, in random order. For each set one *expand* row has a transformer read what is known so
far and say, at the positions of the set, a condition; a short chain of *refine* rows, of any sampler, then takes the tokens of
the set from noise to data under it. After iteration i of I there are floor(N cos(pi/2 (i+1)/I)) of N tokens left (section 3.4;
the cosine schedule of MaskGIT, arXiv 2202.04200), and each iteration makes at least one.

Tokens of one set are drawn independently given those before: as many sets as tokens give the network's own joint distribution,
fewer an approximation, whose bound is `iterations`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta

from service.procedures import parameters as samplers
from service.procedures.chance import Purpose, uniform
from service.procedures.noise_process import NoiseProcess
from service.procedures.parameters import SamplerParameters
from service.procedures.tables import SamplerTable

_SAMPLERS: Mapping[str, type[SamplerParameters]] = {
    "euler": samplers.EulerParameters,
    "heun": samplers.HeunParameters,
    "ddim": samplers.DdimParameters,
    "ddpm": samplers.DdpmParameters,
    "euler_ancestral": samplers.EulerAncestralParameters,
    "dpmpp_2m": samplers.Dpmpp2mParameters,
    "unipc": samplers.UnipcParameters,
}


class MaskedAutoregressiveParameters(SamplerParameters, frozen=True, kw_only=True):
    """How the tokens of a picture are shared out over iterations, and how those of one are sampled."""

    iterations: Annotated[int, Meta(ge=1, le=4096, description="Sets of tokens, one after another; at most one a token.")] = 8
    order: Annotated[Literal["random", "raster"], Meta(description="Which tokens come first.")] = "random"
    sampler: Annotated[
        Literal["euler", "heun", "ddim", "ddpm", "euler_ancestral", "dpmpp_2m", "unipc"],
        Meta(description="Of the tokens of a set, with `steps` steps and defaults of its own."),
    ] = "euler"

    def table(self, noise: NoiseProcess = NoiseProcess(), tokens: int = 0) -> SamplerTable:  # noqa: B008
        """That of one set."""
        common = {name: getattr(self, name) for name in SamplerParameters.__struct_fields__}
        return _SAMPLERS[self.sampler](**common).table(noise, tokens)

    def rounds(self, tokens: int) -> int:
        return min(self.iterations, tokens)

    def sets(self, tokens: int, seed: int) -> list[tuple[int, ...]]:
        """Positions of the tokens of every set, in the order of the sets."""
        order = list(range(tokens))
        if self.order == "random":
            order.sort(key=lambda position: uniform(seed, position, 0, Purpose.ORDER))
        sets, rounds, left = [], self.rounds(tokens), tokens
        for i in range(rounds):
            ahead = rounds - 1 - i
            after = max(ahead, min(left - 1, math.floor(tokens * math.cos(math.pi / 2 * (i + 1) / rounds)))) if ahead else 0
            sets.append(tuple(sorted(order[tokens - left : tokens - after])))
            left = after
        return sets
