"""Pictures that requests of all kinds ask for, refined together: at every turn one forward has the rows of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import Tensor

from kernels.sampler_update import sampler_update
from service.models.latent_network import Adapters, Condition, LatentNetwork
from service.procedures.registry import PROCEDURES
from service.procedures.tables import SamplerTable


@dataclass(frozen=True)
class Asked:
    """One picture: `procedure` is what it changes of the network's default one; `noise` gives what it starts from, and what a
    row adds that needs fresh noise."""

    text: str
    noise: Callable[[], Tensor]
    procedure: Mapping[str, Any] = field(default_factory=dict)
    negative: str = ""
    adapters: Adapters = ()
    size: tuple[int, int] = (32, 32)


class Refined:
    """The state of one picture on its way."""

    def __init__(self, network: LatentNetwork, asked: Asked) -> None:
        default = dict(network.default_procedure)
        if asked.procedure.get("name", default["name"]) != default["name"]:
            default = {key: value for key, value in default.items() if key in ("steps", "guidance")}
        chosen = {**default, **asked.procedure}
        parameters = msgspec.convert({k: v for k, v in chosen.items() if k != "name"}, PROCEDURES[chosen["name"]].parameters)
        self.asked, self.row = asked, 0
        self.table: SamplerTable = parameters.table(network.noise, network.tokens(*asked.size))
        self.scale: float = parameters.guidance
        self.guided = self.scale != 1.0 and network.guidance_input != "always"
        with network.adapting(asked.adapters):
            self.condition: Condition = network.encode([asked.text])[0]
            self.without: Condition | None = network.encode([asked.negative], negative=True)[0] if self.guided else None
        self.x = self.table.start[1] * asked.noise()
        self.h1, self.h2 = torch.zeros_like(self.x), torch.zeros_like(self.x)

    @property
    def done(self) -> bool:
        return self.row == len(self.table)

    def fold(self, output: Tensor) -> None:
        fresh = self.asked.noise() if self.table.d[self.row] else None
        coefficients = torch.tensor([self.table.coefficients(self.row)])
        state = (part[None] for part in (self.x, output, self.h1, self.h2))
        self.x, self.h1, self.h2 = (
            part[0] for part in sampler_update(*state, coefficients, None if fresh is None else fresh[None])
        )
        self.row += 1


@torch.inference_mode()
def latents(network: LatentNetwork, wishes: Sequence[Asked]) -> list[Tensor]:
    """The latents [C, H, W] of all of them, which have one size."""
    states = [Refined(network, asked) for asked in wishes]
    while running := [state for state in states if not state.done]:
        rows: list[tuple[Refined, Condition]] = [(state, state.condition) for state in running]
        rows += [(state, state.without) for state in running if state.without is not None]
        output = network.evaluate(
            torch.stack([state.x for state, _ in rows]),
            torch.tensor([state.table.t[state.row] for state, _ in rows]),
            torch.tensor([state.table.s[state.row] for state, _ in rows]),
            torch.tensor([state.scale for state, _ in rows]),
            [condition for _, condition in rows],
            [state.asked.adapters for state, _ in rows],
        )
        guided = iter(output[len(running) :])
        for state, conditional in zip(running, output[: len(running)], strict=True):
            if state.guided:
                scale = torch.tensor([state.scale])
                conditional = network.guide(conditional[None], next(guided)[None], scale)[0]
            state.fold(conditional)
    return [state.x for state in states]


def drawn(network: LatentNetwork, seed: int, size: tuple[int, int] = (32, 32)) -> Callable[[], Tensor]:
    """Standard noise as diffusers draws it from a generator."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(1, *network.latent_shape(*size), generator=generator)[0]
