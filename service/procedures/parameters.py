"""What a client may set of each sampler: checked when decoded, and able to make its own table.

Decoding raises msgspec.ValidationError for a value that is out of range, not finite, of the wrong type, or under an
unknown name. All tables are on the grid of rectified flow, with time from 1 (noise) to 0 (data).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from service.procedures.consistency import consistency
from service.procedures.ddim import ddim
from service.procedures.dpmpp_2m import dpmpp_2m
from service.procedures.euler import euler
from service.procedures.flow_map import flow_map
from service.procedures.heun import heun
from service.procedures.tables import SamplerTable, flow_grid

Steps = Annotated[int, Meta(ge=1, le=1000, description="Number of steps from noise to data.")]
Guidance = Annotated[
    float,
    Meta(ge=0.0, le=30.0, description="Scale of classifier-free guidance; 1 is none, 0 ignores the condition."),
]
Shift = Annotated[
    float,
    Meta(ge=0.1, le=20.0, description="Moves times towards noise by t <- k t / (1 + (k - 1) t); 1 leaves them."),
]
Eta = Annotated[
    float,
    Meta(ge=0.0, le=1.0, description="Fresh noise a step: 0 is deterministic DDIM, 1 is ancestral sampling."),
]


class SamplerParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every sampler of a continuous state has in common."""

    steps: Steps = 20
    guidance: Guidance = 3.0
    shift: Shift = 1.0

    def table(self) -> SamplerTable:
        """The sampler's table of coefficients; its length is the number of network evaluations."""
        raise NotImplementedError


class EulerParameters(SamplerParameters, frozen=True, kw_only=True):
    """Euler on the flow's ODE; one evaluation a step."""

    def table(self) -> SamplerTable:
        return euler(flow_grid(self.steps, self.shift))


class HeunParameters(SamplerParameters, frozen=True, kw_only=True):
    """Heun on the flow's ODE; 2 steps - 1 evaluations."""

    def table(self) -> SamplerTable:
        return heun(flow_grid(self.steps, self.shift))


class DdimParameters(SamplerParameters, frozen=True, kw_only=True):
    """DDIM; one evaluation a step. With eta = 0 it is Euler on this grid."""

    eta: Eta = 0.0

    def table(self) -> SamplerTable:
        return ddim(flow_grid(self.steps, self.shift), self.eta)


class Dpmpp2mParameters(SamplerParameters, frozen=True, kw_only=True):
    """DPM-Solver++(2M); one evaluation a step."""

    def table(self) -> SamplerTable:
        return dpmpp_2m(flow_grid(self.steps, self.shift))


class FlowMapParameters(SamplerParameters, frozen=True, kw_only=True):
    """Jumps of a flow map; one evaluation a jump. Needs a model that takes the target time.

    The first jumps are short by default: what stands where is decided near the noise.
    """

    steps: Steps = 4
    shift: Shift = 3.0

    def table(self) -> SamplerTable:
        return flow_map(flow_grid(self.steps, self.shift))


class ConsistencyParameters(SamplerParameters, frozen=True, kw_only=True):
    """Jumps to the data with fresh noise between them. Needs a model that takes the target time."""

    steps: Steps = 4
    shift: Shift = 3.0

    def table(self) -> SamplerTable:
        return consistency(flow_grid(self.steps, self.shift))
