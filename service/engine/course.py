"""What a request for a picture runs: a procedure, and what took its place on the way, if time ran out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec

from service.engine.messages import ModelCard
from service.procedures.parameters import FlowMapParameters, SamplerParameters

JUMPS = "flow_map"
OWN_JUMPS = (JUMPS, "consistency")
"""Procedures that make fewer jumps when time runs out; others become jumps of a network that knows them."""


@dataclass(slots=True)
class Course:
    """`parameters` are those of `procedure`, planned with so many `rows`. After `stopped_after` of them, something shorter took
    over: `rest`, with its own parameters."""

    procedure: str
    parameters: SamplerParameters
    rows: int
    stopped_after: int | None = None
    rest: tuple[str, SamplerParameters] | None = None

    def shortened(self, card: ModelCard, jumps: bool, rows: int) -> tuple[str, SamplerParameters]:
        """What goes on from here in at most so many rows, but one step at least; as jumps where the network has them."""
        name, plan = self.rest or (self.procedure, self.parameters)
        if jumps and name not in OWN_JUMPS:
            common = {field: getattr(plan, field) for field in SamplerParameters.__struct_fields__}
            name, plan = JUMPS, FlowMapParameters(**common | {"shift": None, "guidance": known_guidance(card, plan.guidance)})
        a_step = 1 if name in OWN_JUMPS else max(1, math.ceil(self.rows / self.parameters.steps))
        return name, msgspec.structs.replace(plan, steps=max(1, rows // a_step))

    def turn(self, rest: tuple[str, SamplerParameters], at: int) -> None:
        """From row `at` on it is this. Fewer of the same jumps are still the same course."""
        if self.rest is None and rest[0] == self.procedure and rest[0] in OWN_JUMPS:
            return
        self.rest = rest
        self.stopped_after = at if self.stopped_after is None else self.stopped_after

    def described(self, rows: int) -> dict[str, Any]:
        """As the answer shows it, `rows` being all that there were in the end: the name and the parameters, with the jumps that
        were made; or those that were planned, after how many rows that stopped, and what followed, `steps` of it being rows."""
        out = {"name": self.procedure, **msgspec.to_builtins(self.parameters)}
        if self.rest is None or self.stopped_after is None:
            return out | ({"steps": rows} if self.procedure in OWN_JUMPS else {})
        then = {"name": self.rest[0], "steps": rows - self.stopped_after, "guidance": self.rest[1].guidance}
        return {**out, "stopped_after": self.stopped_after, "then": then}


def known_guidance(card: ModelCard, guidance: float) -> float:
    """The nearest scale that the network knows in its jumps."""
    low, high = card.guidance_range or (guidance, guidance)
    return min(max(guidance, low), high)
