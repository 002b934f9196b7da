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
    "entropy_bound": ("entropy_bound", "steps", "t_max", "t_min", "stability_threshold", "confidence_threshold"),
    "remask": ("steps", "eta"),
    "uniform": ("steps",),
}
REREADING_RULES: tuple[Rule, ...] = ("entropy_bound", "uniform")
"""Rules that, where noise is random tokens, look at every position in every forward."""
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
    t_max: (
        Annotated[
            float,
            Meta(
                gt=0.0, le=100.0,
                description="of the rule entropy_bound: the temperature falls evenly from t_max, in a canvas' first forward, "
                "towards t_min; the request's temperature multiplies it",
            ),
        ]
        | None
    ) = None  # fmt: skip
    t_min: Annotated[float, Meta(gt=0.0, le=100.0, description="see t_max")] | None = None
    confidence_threshold: (
        Annotated[
            float,
            Meta(
                gt=0.0, le=1000.0,
                description="of the rule entropy_bound, for networks whose noise is random tokens: the canvas ends, as its "
                "likeliest tokens, when their mean entropy is below this and stability_threshold forwards before said the same",
            ),
        ]
        | None
    ) = None  # fmt: skip
    stability_threshold: (
        Annotated[int, Meta(ge=0, le=1024, description="see confidence_threshold, with which it is 1 by default")] | None
    ) = None

    sub_block_length: (
        Annotated[int, Meta(ge=1, le=256, description="the canvas is set in parts of so many tokens, from left to right")] | None
    ) = None

    def __post_init__(self) -> None:
        """Fills in the defaults of the rule's own parameters. Raises ValueError when another rule's is given."""
        for name in sorted({name for knobs in _KNOBS.values() for name in knobs}):
            if getattr(self, name) is not None and name not in _KNOBS[self.rule]:
                owners = ", ".join(rule for rule, knobs in _KNOBS.items() if name in knobs)
                raise ValueError(f"`{name}` is for the rule {owners}; the rule is {self.rule}")
        if self.sub_block_length is not None and self.block_length % self.sub_block_length:
            raise ValueError(f"`sub_block_length` must divide block_length, {self.block_length}")
        if self.sub_block_length is not None and self.rule in _RESAMPLING:
            raise ValueError(f"`sub_block_length` is for rules that set positions once; the rule is {self.rule}")
        if self.factor is not None and self.threshold is not None:
            raise ValueError("`factor` takes the place of threshold; give one of them")
        if (self.t_max is None) != (self.t_min is None) or (self.t_max or 0.0) < (self.t_min or 0.0):
            raise ValueError("`t_max` and `t_min` go together, and t_max is at least t_min")
        if self.stability_threshold is not None and self.confidence_threshold is None:
            raise ValueError("`stability_threshold` needs a confidence_threshold")
        if self.confidence_threshold is not None:
            self._default("stability_threshold", 1)
        if self.steps is not None and self.steps > self.block_length and self.rule not in (*_RESAMPLING, "entropy_bound"):
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
