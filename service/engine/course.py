"""What a request for a picture runs: a procedure, and what took its place on the way, if time ran out."""

from __future__ import annotations

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

    def going_on(self, card: ModelCard, jumps: bool) -> tuple[str, SamplerParameters]:
        """What goes on from here in fewer steps; as jumps where the network has them. Without churn: the noise that it adds
        before its first step is part of a first state, and this one is there."""
        name, plan = self.rest or (self.procedure, self.parameters)
        if jumps and name not in OWN_JUMPS:
            common = {field: getattr(plan, field) for field in SamplerParameters.__struct_fields__}
            name, plan = JUMPS, FlowMapParameters(**common | {"shift": None, "guidance": known_guidance(card, plan.guidance)})
        return name, msgspec.structs.replace(plan, churn=0.0) if "churn" in plan.__struct_fields__ else plan

    def turn(self, rest: tuple[str, SamplerParameters], at: int) -> None:
        """From row `at` on it is this. Fewer of the same jumps are still the same course, if it is whole."""
        if self.rest is None and rest[0] == self.procedure and self._counts_jumps:
            return
        self.rest = rest
        self.stopped_after = at if self.stopped_after is None else self.stopped_after

    @property
    def _counts_jumps(self) -> bool:
        """Whether `steps` are the jumps that were made: of a way that begins at a given picture they are more."""
        return self.procedure in OWN_JUMPS and self.parameters.strength == 1.0

    def described(self, rows: int) -> dict[str, Any]:
        """As the answer shows it, `rows` being all that there were in the end: the name and the parameters, with the jumps that
        were made; or those that were planned, after how many rows that stopped, and what followed, `steps` of it being rows."""
        out = {"name": self.procedure, **msgspec.to_builtins(self.parameters)}
        if self.rest is None or self.stopped_after is None:
            return out | ({"steps": rows} if self._counts_jumps else {})
        then = {"name": self.rest[0], "steps": rows - self.stopped_after, "guidance": self.rest[1].guidance}
        return {**out, "stopped_after": self.stopped_after, "then": then}


def known_guidance(card: ModelCard, guidance: float) -> float:
    """The nearest scale that the network knows in its jumps."""
    low, high = card.guidance_range or (guidance, guidance)
    return min(max(guidance, low), high)
