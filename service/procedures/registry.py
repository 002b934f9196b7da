"""Every procedure by name: what it makes, which network it needs, its parameters and how to begin it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from service.procedures import parameters as latent
from service.procedures.autoregressive import Autoregressive, AutoregressiveParameters
from service.procedures.block_diffusion import BlockDiffusion, BlockDiffusionParameters
from service.procedures.masked_autoregressive import MaskedAutoregressiveParameters
from service.procedures.masked_diffusion import MaskedDiffusion, MaskedDiffusionParameters
from service.procedures.speculative import Speculative, SpeculativeParameters
from service.procedures.types import Axis, TokenProcedure


@dataclass(frozen=True)
class Procedure:
    """`needs` are entries of a model's signature, any one of which is enough. Text procedures have `begin`; image procedures
    are sampler tables, which their parameter class computes for a model's `NoiseProcess`."""

    name: str
    kind: Literal["text", "image"]
    axes: tuple[Axis, ...]
    needs: frozenset[str]
    parameters: type[msgspec.Struct]
    summary: str
    begin: Callable[[Any], TokenProcedure] | None = None


_INSTANTANEOUS = frozenset({"velocity(x,t)", "noise(x,t)", "data(x,t)"})
"""Networks of one time: samplers turn what they predict into what they need."""
_MAP = frozenset({"flow_map(x,t,s)"})
_CONSISTENT = frozenset({"consistency(x,t)"})


def _image(name: str, needs: frozenset[str], parameters: type[msgspec.Struct], summary: str) -> Procedure:
    return Procedure(name, "image", (Axis.REFINE,), needs, parameters, summary)


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
    _image("euler", _INSTANTANEOUS, latent.EulerParameters, "First order; the plain step of the ODE."),
    _image("heun", _INSTANTANEOUS, latent.HeunParameters, "Second order, two evaluations a step."),
    _image("ddim", _INSTANTANEOUS, latent.DdimParameters, "First order; `eta` adds fresh noise, 1 is ancestral."),
    _image("ddpm", _INSTANTANEOUS, latent.DdpmParameters, "Ancestral sampling, for many steps."),
    _image("euler_ancestral", _INSTANTANEOUS, latent.EulerAncestralParameters, "Euler with fresh noise in every step."),
    _image("dpmpp_2m", _INSTANTANEOUS, latent.Dpmpp2mParameters, "Second order, one evaluation a step; `eta` 1 is the SDE."),
    _image("unipc", _INSTANTANEOUS, latent.UnipcParameters, "Third order by a corrector, one evaluation a step."),
    _image("flow_map", _MAP, latent.FlowMapParameters, "Long jumps of a network that knows its target."),
    _image("restart", _MAP, latent.RestartParameters, "Jumps to data, and again from a noise level."),
    _image("consistency", _MAP | _CONSISTENT, latent.ConsistencyParameters, "Jump to data, add fresh noise, jump again."),
    _image("lcm", _CONSISTENT, latent.LcmParameters, "Jumps to data of a latent consistency model."),
    Procedure(
        "masked_autoregressive", "image", (Axis.EXPAND, Axis.REFINE), frozenset({"velocity(x,t|known)"}),
        MaskedAutoregressiveParameters, "Tokens of a picture set by set, each refined from noise under those before.",
    ),
)  # fmt: skip

PROCEDURES: dict[str, Procedure] = {procedure.name: procedure for procedure in _ALL}


def runnable(kind: str, signature: frozenset[str]) -> list[str]:
    """Names of the procedures that a model of this kind and signature can run, in the order of the registry."""
    return [p.name for p in _ALL if p.kind == kind and p.needs & signature]
