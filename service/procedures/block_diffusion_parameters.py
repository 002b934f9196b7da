"""What a client may set of `block_diffusion`: a rule, and the knobs of that rule alone."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Rule = Literal["threshold", "confidence", "margin", "entropy", "entropy_bound", "remask", "uniform"]
_KNOBS: dict[Rule, tuple[str, ...]] = {
    "threshold": ("threshold", "factor", "steps"),
    "confidence": ("steps",),
    "margin": ("steps",),
    "entropy": ("steps",),
    "entropy_bound": ("entropy_bound", "steps"),
    "remask": ("steps", "eta"),
    "uniform": ("steps",),
}
_RESAMPLING = ("remask", "uniform")
SPREAD_RULES = ("margin", "entropy", "entropy_bound")
"""Rules that look at more than the probability of what was drawn."""


class BlockDiffusionParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of `block_diffusion`."""

    block_length: Annotated[int, Meta(ge=1, le=256, description="tokens in a canvas")] = 16
    rule: Annotated[Rule, Meta(description="which positions a forward sets")] = "threshold"
    threshold: (
        Annotated[
            float,
            Meta(ge=0.0, le=1.0, description="of the rule threshold: probability above which a token is set; 0.9 by default"),
        ]
        | None
    ) = None
    factor: (
        Annotated[
            float,
            Meta(
                gt=0.0, le=1000.0,
                description="of the rule threshold, in place of `threshold`: the n surest are set while (n + 1)(1 - their "
                "lowest probability) is below it",
            ),
        ]
        | None
    ) = None  # fmt: skip
    entropy_bound: (
        Annotated[
            float,
            Meta(
                ge=0.0, le=1000.0,
                description="of the rule entropy_bound, in nats: the sum of the entropies of what is set together, less the "
                "largest, stays within it; 0.1 by default",
            ),
        ]
        | None
    ) = None  # fmt: skip
    eta: (
        Annotated[
            float,
            Meta(ge=0.0, le=1.0, description="of the rule remask: most that a set token is masked with again; 0.04 by default"),
        ]
        | None
    ) = None
    steps: (
        Annotated[
            int,
            Meta(
                ge=1, le=1024,
                description="forwards a canvas; half its tokens by default, and with threshold and entropy_bound as many as it "
                "takes: given there, each sets at least its share",
            ),
        ]
        | None
    ) = None  # fmt: skip

    sub_block_length: (
        Annotated[int, Meta(ge=1, le=256, description="the canvas is set in parts of so many tokens, from left to right")] | None
    ) = None

    def __post_init__(self) -> None:
        """Fills in the defaults of the rule's own parameters. Raises ValueError when another rule's is given."""
        for name in ("threshold", "factor", "entropy_bound", "eta", "steps"):
            if getattr(self, name) is not None and name not in _KNOBS[self.rule]:
                owners = ", ".join(rule for rule, knobs in _KNOBS.items() if name in knobs)
                raise ValueError(f"`{name}` is for the rule {owners}; the rule is {self.rule}")
        if self.sub_block_length is not None and self.block_length % self.sub_block_length:
            raise ValueError(f"`sub_block_length` must divide block_length, {self.block_length}")
        if self.sub_block_length is not None and self.rule in _RESAMPLING:
            raise ValueError(f"`sub_block_length` is for rules that set positions once; the rule is {self.rule}")
        if self.factor is not None and self.threshold is not None:
            raise ValueError("`factor` takes the place of threshold; give one of them")
        if self.steps is not None and self.steps > self.block_length and self.rule not in _RESAMPLING:
            raise ValueError(f"`steps` must be at most block_length, {self.block_length}")
        if self.rule == "threshold" and self.factor is None:
            self._default("threshold", 0.9)
        elif self.rule == "entropy_bound":
            self._default("entropy_bound", 0.1)
        elif self.rule == "remask":
            self._default("eta", 0.04)
        if self.rule not in ("threshold", "entropy_bound"):
            self._default("steps", max(1, self.block_length // 2))

    def _default(self, name: str, value: float) -> None:
        if getattr(self, name) is None:
            msgspec.structs.force_setattr(self, name, value)
