"""Every procedure by name: what it makes, which network it needs, its parameters and how to begin it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from service.procedures import parameters as latent
from service.procedures.autoregressive import Autoregressive, AutoregressiveParameters
from service.procedures.block_diffusion import BlockDiffusion, BlockDiffusionParameters
from service.procedures.masked_diffusion import MaskedDiffusion, MaskedDiffusionParameters
from service.procedures.speculative import Speculative, SpeculativeParameters
from service.procedures.types import Axis, TokenProcedure


@dataclass(frozen=True)
class Procedure:
    """`needs` are entries of a model's signature. Text procedures have `begin`; image procedures are sampler tables,
    which their parameter class computes."""

    name: str
    kind: Literal["text", "image"]
    axes: tuple[Axis, ...]
    needs: frozenset[str]
    parameters: type[msgspec.Struct]
    summary: str
    begin: Callable[[Any], TokenProcedure] | None = None


def _image(name: str, need: str, parameters: type[msgspec.Struct], summary: str) -> Procedure:
    return Procedure(name, "image", (Axis.REFINE,), frozenset({need}), parameters, summary)


_ALL = (
    Procedure(
        "autoregressive", "text", (Axis.EXPAND,), frozenset({"next(tokens)"}), AutoregressiveParameters,
        "One token a forward, from the model's own distribution.", Autoregressive,
    ),
    Procedure(
        "speculative", "text", (Axis.EXPAND,), frozenset({"next(tokens)"}), SpeculativeParameters,
        "Several tokens a forward: guesses are verified. The text is that of autoregressive.", Speculative,
    ),
    Procedure(
        "block_diffusion", "text", (Axis.EXPAND, Axis.REFINE), frozenset({"canvas(prefix, block)"}),
        BlockDiffusionParameters,
        "Several tokens a forward: a canvas of masked tokens is refined, then committed.", BlockDiffusion,
    ),
    Procedure(
        "masked_diffusion", "text", (Axis.EXPAND, Axis.REFINE), frozenset({"canvas(sequence)"}), MaskedDiffusionParameters,
        "Several tokens a forward, by a network that sees all that is to be written as masks.", MaskedDiffusion,
    ),
    _image("euler", "velocity(x,t)", latent.EulerParameters, "First order; the plain ODE step of flow matching."),
    _image("heun", "velocity(x,t)", latent.HeunParameters, "Second order, two evaluations a step."),
    _image("ddim", "velocity(x,t)", latent.DdimParameters, "First order; `eta` adds fresh noise, 1 is ancestral."),
    _image("dpmpp_2m", "velocity(x,t)", latent.Dpmpp2mParameters, "Second order, one evaluation a step, with history."),
    _image("flow_map", "flow_map(x,t,s)", latent.FlowMapParameters, "Long jumps of a network that knows its target."),
    _image("consistency", "flow_map(x,t,s)", latent.ConsistencyParameters, "Jump to data, add fresh noise, jump again."),
)  # fmt: skip

PROCEDURES: dict[str, Procedure] = {procedure.name: procedure for procedure in _ALL}


def runnable(kind: str, signature: frozenset[str]) -> list[str]:
    """Names of the procedures that a model of this kind and signature can run, in the order of the registry."""
    return [p.name for p in _ALL if p.kind == kind and p.needs <= signature]
