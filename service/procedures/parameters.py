"""What a client may set of each sampler: checked when decoded, and able to make its own table.

Decoding raises msgspec.ValidationError for a value that is out of range, not finite, of the wrong type, or under an
unknown name. A table is made for the noise that a model was trained with; where the two do not go together, ValueError says why.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from service.procedures.churn import raised_nodes
from service.procedures.consistency import consistency
from service.procedures.ddim import ddim
from service.procedures.ddpm import ddpm
from service.procedures.dpmpp_2m import dpmpp_2m
from service.procedures.euler import euler
from service.procedures.flow_map import flow_map, landing_nodes
from service.procedures.heun import heun
from service.procedures.lcm import lcm
from service.procedures.noise_process import PLAIN_FLOW, NoiseProcess
from service.procedures.restart import restart
from service.procedures.tables import Grid, Node, SamplerTable
from service.procedures.unipc import unipc

Steps = Annotated[int, Meta(ge=1, le=1000, description="Number of steps from noise to data; not used where timesteps are given.")]
Guidance = Annotated[
    float,
    Meta(ge=0.0, le=30.0, description="Scale of classifier-free guidance; 1 is none, 0 ignores the condition."),
]
Level = Annotated[float, Meta(ge=0.0, le=1.0)]
GuidanceInterval = Annotated[
    tuple[Level, Level],
    Meta(description="Lowest and highest noise level, sigma / (alpha + sigma), at which guidance is used; 1 is pure noise."),
]
GuidanceRescale = Annotated[
    float,
    Meta(ge=0.0, le=1.0, description="How far the guided data estimate is scaled back to the deviation of the conditional one."),
]
Schedules = Annotated[
    Literal["default", "linear", "cosine", "karras", "exponential", "beta"],
    Meta(description="How noise levels are spaced; default is the model's own way."),
]
ShiftRange = Annotated[
    float,
    Meta(
        ge=0.1,
        le=20.0,
        description="Moves times towards noise by t <- k t / (1 + (k - 1) t); 1 leaves them, null is the model's.",
    ),
]
Timesteps = Annotated[
    tuple[Annotated[float, Meta(ge=0.0, le=1e5)], ...],
    Meta(
        min_length=1,
        max_length=1000,
        description="The times themselves, falling: t in (0, 1] of a flow, training timesteps of a diffusion, sigma, or angles.",
    ),
]
Strength = Annotated[
    float,
    Meta(gt=0.0, le=1.0, description="Share of the steps that a given picture goes through; 1 begins at noise."),
]
ReuseThreshold = Annotated[
    float,
    Meta(
        ge=0.0,
        le=10.0,
        description="Where what the first block adds has changed by at most this share since all blocks ran, the others are not "
        "run again, and what they added then is added; 0 is off. Needs a transformer.",
    ),
]
Eta = Annotated[
    float,
    Meta(ge=0.0, le=1.0, description="Fresh noise a step: 0 is deterministic, 1 is ancestral sampling or the SDE."),
]
Churn = Annotated[
    float,
    Meta(ge=0.0, le=1000.0, description="Noise added before steps: sigma / alpha grows by a share churn / steps, at most 0.414."),
]
Sigma = Annotated[float, Meta(ge=0.0, le=1e5, description="Bound of sigma / alpha between which churn is added.")]
NoiseScale = Annotated[float, Meta(ge=0.5, le=1.5, description="Deviation of the noise that is added; 1 by theory.")]
Variance = Annotated[Literal["small", "large"], Meta(description="Of the noise: the posterior's, or the forward process's.")]
Weighting = Annotated[Literal["midpoint", "heun"], Meta(description="How the difference of data estimates is weighted.")]
Jumps = Annotated[int, Meta(ge=1, le=100, description="Number of jumps after each restart.")]


class SamplerParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every sampler of a continuous state has in common."""

    steps: Steps = 20
    guidance: Guidance = 3.0
    guidance_interval: GuidanceInterval = (0.0, 1.0)
    guidance_rescale: GuidanceRescale = 0.0
    schedule: Schedules = "default"
    shift: ShiftRange | None = None
    timesteps: Timesteps | None = None
    strength: Strength = 1.0
    reuse_threshold: ReuseThreshold = 0.0

    def __post_init__(self) -> None:
        low, high = self.guidance_interval
        if low > high:
            raise ValueError(f"`guidance_interval` must be from the lowest to the highest level, not {low} to {high}")

    def table(self, noise: NoiseProcess = PLAIN_FLOW, tokens: int = 0) -> SamplerTable:
        """The sampler's table of coefficients; its length is the number of network evaluations.

        noise: what the model was trained with. tokens: length of its picture as a sequence. Raises ValueError in words for a
        client where the sampler or a parameter does not go with this noise.
        """
        raise NotImplementedError

    def rounds(self, tokens: int) -> int:
        """How often the table runs for one picture of so many tokens."""
        return 1

    def grid(self, noise: NoiseProcess, tokens: int, shift: float | None = None) -> Grid:
        """The nodes that the sampler steps along; `shift` where the request has none."""
        shift = self.shift if self.shift is not None or self.timesteps is not None else shift
        schedule = None if self.schedule == "default" else self.schedule
        return noise.grid(
            self.steps, schedule=schedule, shift=shift, timesteps=self.timesteps, tokens=tokens, strength=self.strength
        )


class Churned(SamplerParameters, frozen=True, kw_only=True):
    """Samplers with EDM's churn."""

    churn: Churn = 0.0
    churn_min: Sigma = 0.0
    churn_max: Sigma = 1e5
    noise_scale: NoiseScale = 1.0

    def raised(self, noise: NoiseProcess, grid: Grid) -> list[Node]:
        return raised_nodes(noise, grid, self.churn, self.churn_min, self.churn_max)


class EulerParameters(Churned, frozen=True, kw_only=True):
    """Euler on the ODE; one evaluation a step."""

    def table(self, noise: NoiseProcess = PLAIN_FLOW, tokens: int = 0) -> SamplerTable:
        grid = self.grid(noise, tokens)
        return euler(grid, self.raised(noise, grid), self.noise_scale)


class HeunParameters(Churned, frozen=True, kw_only=True):
    """Heun on the ODE; 2 steps - 1 evaluations."""

    def table(self, noise: NoiseProcess = PLAIN_FLOW, tokens: int = 0) -> SamplerTable:
        grid = self.grid(noise, tokens)
        return heun(grid, self.raised(noise, grid), self.noise_scale)


class DdimParameters(SamplerParameters, frozen=True, kw_only=True):
    """DDIM; one evaluation a step. With eta = 0 it is Euler on the same times."""

    eta: Eta = 0.0

    def table(self, noise: NoiseProcess = PLAIN_FLOW, tokens: int = 0) -> SamplerTable:
        return ddim(self.grid(noise, tokens), self.eta)


class DdpmParameters(SamplerParameters, frozen=True, kw_only=True):
    """DDPM; one evaluation a step, with fresh noise."""

    variance: Variance = "small"

    def table(self, noise: NoiseProcess = PLAIN_FLOW, tokens: int = 0) -> SamplerTable:
        return ddpm(self.grid(noise, tokens), self.variance)


class EulerAncestralParameters(SamplerParameters, frozen=True, kw_only=True):
    """Ancestral Euler; one evaluation a step, with fresh noise."""

    eta: Eta = 1.0
    noise_scale: NoiseScale = 1.0

    def table(self, noise: NoiseProcess = PLAIN_FLOW, tokens: int = 0) -> SamplerTable:
        return ddim(self.grid(noise, tokens), self.eta, self.noise_scale)


class Dpmpp2mParameters(SamplerParameters, frozen=True, kw_only=True):
    """DPM-Solver++(2M); one evaluation a step. With eta = 1 its SDE."""

    eta: Eta = 0.0
    solver: Weighting = "midpoint"

    def table(self, noise: NoiseProcess = PLAIN_FLOW, tokens: int = 0) -> SamplerTable:
        return dpmpp_2m(self.grid(noise, tokens), self.eta, self.solver)


class UnipcParameters(SamplerParameters, frozen=True, kw_only=True):
    """UniPC with its corrector; one evaluation a step."""

    order: Annotated[int, Meta(ge=1, le=2, description="Order of the predictor; the corrector's is one more.")] = 2
    solver: Annotated[Literal["bh1", "bh2"], Meta(description="The function B(h) of the method.")] = "bh2"

    def table(self, noise: NoiseProcess = PLAIN_FLOW, tokens: int = 0) -> SamplerTable:
        return unipc(self.grid(noise, tokens), self.order, self.solver)


class LcmParameters(SamplerParameters, frozen=True, kw_only=True):
    """Latent consistency sampling. Needs a model that was distilled for it."""

    steps: Steps = 4
    timestep_scaling: Annotated[float, Meta(ge=0.01, le=1000.0, description="Of the boundary scalings; the model's own.")] = 10.0

    def table(self, noise: NoiseProcess = PLAIN_FLOW, tokens: int = 0) -> SamplerTable:
        return lcm(self.grid(noise, tokens), self.timestep_scaling)


class JumpParameters(SamplerParameters, frozen=True, kw_only=True):
    """Samplers of a few long jumps. Where the model is a flow, the first jumps are short by default: what stands where is
    decided near the noise."""

    steps: Steps = 4

    def grid(self, noise: NoiseProcess, tokens: int, shift: float | None = None) -> Grid:
        return super().grid(noise, tokens, noise.shift_of_jumps)


class FlowMapParameters(JumpParameters, frozen=True, kw_only=True):
    """Jumps of a flow map; one evaluation a jump. Needs a model that takes the target time."""

    gamma: Annotated[
        float, Meta(ge=0.0, le=1.0, description="Fresh noise a jump: 0 is deterministic, with 1 every jump goes to the data.")
    ] = 0.0

    def table(self, noise: NoiseProcess = PLAIN_FLOW, tokens: int = 0) -> SamplerTable:
        grid = self.grid(noise, tokens)
        return flow_map(grid, landing_nodes(noise, grid, self.gamma))


class ConsistencyParameters(JumpParameters, frozen=True, kw_only=True):
    """Jumps to the data with fresh noise between them. Needs a flow map, or a model trained for consistency."""

    def table(self, noise: NoiseProcess = PLAIN_FLOW, tokens: int = 0) -> SamplerTable:
        return consistency(self.grid(noise, tokens))


class RestartParameters(JumpParameters, frozen=True, kw_only=True):
    """Jumps of a flow map to the data, then from a noise level again. Needs a model that takes the target time."""

    restarts: Annotated[int, Meta(ge=1, le=20, description="How often noise is added and the way to the data taken again.")] = 1
    level: Annotated[float, Meta(ge=0.01, le=0.99, description="Noise level, sigma / (alpha + sigma), to restart from.")] = 0.5
    jumps: Jumps = 1

    def table(self, noise: NoiseProcess = PLAIN_FLOW, tokens: int = 0) -> SamplerTable:
        first = self.grid(noise, tokens)
        node, last = noise.times.at(self.level / (1.0 - self.level)), noise.times.last()
        if node.sigma * last.alpha <= node.alpha * last.sigma:
            raise ValueError(f"`level` {self.level} is below the noise that this model's last step leaves")
        shift = noise.shift_of_jumps if self.shift is None else self.shift
        again = noise.onwards(node.alpha, node.sigma, self.jumps, shift=shift, tokens=tokens)
        return restart([first, *[again] * self.restarts])
