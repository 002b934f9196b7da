"""The rows of a picture: what each does, and what the scheduler and the workers know of it. Plain data, no device code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

GuidanceInput = Literal["no", "jumps", "always"]
"""Where a network takes the scale of guidance as an argument: nowhere, in rows that are told where they go, or in all."""

Stage = Literal["encode", "decode", "score", "expand", "refine"]
STAGES: tuple[Stage, ...] = ("encode", "decode", "score", "expand", "refine")
"""What the rows of a picture do, those first that others wait for: text becomes a condition, a latent a picture, a picture gets
its score, the next tokens of one get their condition, or a latent is refined. Rows of different stages never share a forward."""


@dataclass(frozen=True, slots=True)
class EncodeRow:
    """`texts` of one request become conditions, and the picture it starts from, if one was `given`, a latent."""

    stage: ClassVar[Stage] = "encode"
    texts: tuple[str, ...]
    given: bool = False

    @property
    def evaluations(self) -> int:
        return len(self.texts) + self.given


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """A latent becomes a picture: the last one, or what a preview shows."""

    stage: ClassVar[Stage] = "decode"
    evaluations: int = 1


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A picture gets its score, among others of one request."""

    stage: ClassVar[Stage] = "score"
    evaluations: int = 1


@dataclass(frozen=True, slots=True)
class ExpandRow:
    """What is known of a picture becomes the condition of its next tokens, where `paired` without the text as well."""

    stage: ClassVar[Stage] = "expand"
    paired: bool = False

    @property
    def evaluations(self) -> int:
        return 2 if self.paired else 1


@dataclass(frozen=True, slots=True)
class LatentRow:
    """One network evaluation of a latent and the update that follows it (a row of a `SamplerTable`).

    The network is evaluated at time t towards s; `coefficients` are a, b, c1, c2, d, p, q. `guidance` 1 is none; where it is
    `paired`, the network is evaluated without the text as well, and the spread of what comes of both is brought back to the
    plain one's by the share `rescale` (arXiv 2305.08891, eq. 15 and 16). `draw` numbers the noise of this row.

    Before the row the noise `level` is sigma / (alpha + sigma), and the data are estimated as x0 = estimate[0] x +
    estimate[1] f; behind it the state has alpha, sigma = `after`. The first row begins at alpha, sigma = `start`.
    """

    stage: ClassVar[Stage] = "refine"
    index: int
    t: float
    s: float
    coefficients: tuple[float, float, float, float, float, float, float]
    guidance: float
    takes_target: bool
    draw: int
    paired: bool = False
    rescale: float = 0.0
    level: float = 1.0
    estimate: tuple[float, float] = (1.0, 0.0)
    after: tuple[float, float] = (1.0, 0.0)
    start: tuple[float, float] | None = None

    @property
    def evaluations(self) -> int:
        return 2 if self.paired else 1


PictureRow = EncodeRow | DecodeRow | ScoreRow | ExpandRow | LatentRow
