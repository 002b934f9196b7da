"""What the engine hands to a worker and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from service.models.latent_network import Adapters, Condition
from service.models.reuse_memory import Reuse
from service.procedures.picture_rows import LatentRow
from service.procedures.types import Draft, Reading, TokenRow
from service.workers.occurrences import Occurrences, Seen
from service.workers.pending import Pending

DeviceLost: type[Exception] = torch.AcceleratorError
"""An error of the device itself, but for want of memory: whatever is asked of it afterwards fails as well, so the engine's
process ends and is started again."""


@dataclass(frozen=True, slots=True)
class Penalties:
    """Of what a request has seen; repetition 1 and presence and frequency 0 are none."""

    seen: Occurrences | Seen
    repetition: float
    presence: float
    frequency: float


@dataclass(frozen=True, slots=True)
class Draws:
    """How the wanted positions of a row are drawn.

    `bias` is added to the logits of these tokens; those `banned` cannot stand at positions before `floor`; `allowed` is a bit
    a token, lowest first, empty when all are; `logprobs` asks for the plain log-probability of what was drawn and of that
    many of the likeliest.
    """

    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    penalties: Penalties | None = None
    bias: Mapping[int, float] = field(default_factory=dict)
    banned: tuple[int, ...] = ()
    floor: int = 0
    allowed: bytes = b""
    logprobs: int | None = None

    def heated(self, heat: float) -> Draws:
        """The same at a temperature so many times as high."""
        return self if heat == 1.0 else replace(self, temperature=self.temperature * heat)


@dataclass(slots=True)
class Deferred:
    """What a drafter has yet to compute of a request for which it guesses nothing at present: `tokens` from position `start`
    on, and the `features` [n, d] that belong to them, in pieces. The request keeps it, and the drafter alone looks inside."""

    start: int = 0
    tokens: tuple[int, ...] = ()
    features: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TokenMove:
    """The rows of one request in a forward, with its block table.

    `draws` says how the wanted positions of the last row are drawn, or only the first of them where `later` has one for
    each of the others. `drafting` asks `drafter` for that many guesses of what comes behind the token that this move adds
    to the committed ones, and for `width` at each of their places; `following` is the token behind the rows where that is
    known already, as in a prompt; `deferred` is what the drafter has put off. `carried` is what the last forward of the canvas
    gave to be handed in again, None for a first one. With `follows` the only row's only token is not known to the host (it is
    `UNKNOWN`): it is what the worker's launch before this one draws for its move of that number.
    """

    rows: tuple[TokenRow, ...]
    blocks: list[int]
    draws: Draws
    later: tuple[Draws, ...] = ()
    drafting: int = 0
    drafter: str = ""
    following: int | None = None
    deferred: Deferred = field(default_factory=Deferred)
    width: int = 1
    carried: object | None = None
    follows: int | None = None

    def every_draw(self) -> list[Draws]:
        """One a wanted position of the last row."""
        count = len(self.rows[-1].wanted)
        return [self.draws, *self.later] if self.later else [self.draws] * count


@dataclass(frozen=True, slots=True)
class Picture:
    """RGB bytes row by row."""

    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class Encoded:
    """What texts became, the prompt first. `given` is the latent [C, H, W] of the picture
    that a request starts from, `mask` [1, H, W] is 1 where it is to change; None where there is none."""

    conditions: tuple[Condition, ...]
    given: Tensor | None = None
    mask: Tensor | None = None

    def every_tensor(self) -> list[Tensor]:
        conditions = [tensor for condition in self.conditions for tensor in condition.tensors.values()]
        return conditions + [tensor for tensor in (self.given, self.mask) if tensor is not None]


@dataclass(frozen=True, slots=True)
class Latent:
    """A latent float32 [C, H, W] that is to become a picture of so many pixels."""

    tensor: Tensor


@dataclass(frozen=True, slots=True)
class EncodeMove:
    """Texts, and the picture to start from: RGB bytes of `width` by `height` pixels, with one byte a pixel of its mask. Pictures
    of the first text will be judged by `scorer`, where there is one. `adapters` are names and scales."""

    texts: tuple[str, ...]
    width: int
    height: int
    image: bytes = b""
    mask: bytes = b""
    scorer: str = ""
    adapters: Adapters = ()


@dataclass(frozen=True, slots=True)
class DecodeMove:
    latent: Latent


@dataclass(frozen=True, slots=True)
class ScoreMove:
    """A picture to be judged by a scorer of `service.models.scorers`."""

    scorer: str
    prompt: str
    picture: Picture


@dataclass(frozen=True, slots=True)
class ExpandMove:
    """The `chosen` tokens of the latent in `slot` are to get their condition from its `known` ones; where `paired`, from the
    second text as well."""

    slot: int
    width: int
    height: int
    encoded: Encoded
    known: tuple[int, ...]
    chosen: tuple[int, ...]
    paired: bool = False


@dataclass(frozen=True, slots=True)
class Fork:
    """Where a copy of a latent comes from: its `slot`, which stays as it is. The noise of the row before, `scale` times that of
    (`seed`, `draw`), is not taken over: the copy has that of its own seed instead."""

    slot: int
    seed: int
    draw: int
    scale: float


@dataclass(frozen=True, slots=True)
class RefineMove:
    """One row of a request's sampler table. `slot` holds the latent; `shown` asks for what there is to be seen after the row:
    the state where it is the `final` row, and the estimate of the data before. The second of the conditions, where there is
    one, is what guidance leads away from. `adapters` are names and scales. Where there is a `source`, the row goes on from
    another latent. `reuse`, where the request asked for it, is what it remembers of its evaluations with the first of the
    conditions, and with the second."""

    row: LatentRow
    slot: int
    seed: int
    width: int
    height: int
    encoded: Encoded
    shown: bool
    final: bool
    adapters: Adapters = ()
    source: Fork | None = None
    reuse: tuple[Reuse, ...] = ()


LatentMove = EncodeMove | DecodeMove | ScoreMove | ExpandMove | RefineMove


@dataclass(frozen=True, slots=True)
class Score:
    value: float


class RowError(Exception):
    """A move that could not be computed; the message is for the client. With a `param` it is about that field of the request,
    which the model cannot take."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class TokenRead:
    """What was read at the wanted positions of a move's last row, and what a drafter guesses to come after all of it that
    is committed (`service.procedures.drafts.accepted`). `carried` belongs into the canvas' next move."""

    readings: list[Reading] = field(default_factory=list)
    draft: Draft | None = None
    carried: object | None = None


TokenOutcome = TokenRead | RowError
LatentOutcome = Encoded | Latent | Picture | Score | None | RowError


class Launching(Protocol):
    """A worker of either kind that gives the device its work without waiting for it; its `run` is `launch` and `outcomes`."""

    def launch(self, moves: Sequence[Any]) -> Pending[Any]:
        """Reads what it needs of the moves before it returns, but for what hangs on their outcomes."""
        ...


class TokenWorkerLike(Protocol):
    """Runs packed token rows of one model in one forward; an outcome a move, the readings of its last row."""

    def run(self, moves: Sequence[TokenMove]) -> list[TokenOutcome]: ...


class LatentWorkerLike(Protocol):
    """Runs moves of one stage and one size of one model, in one forward. Refining gives, where something is to be shown, a
    latent to be decoded or, of models that decode nothing, the picture itself."""

    def run(self, moves: Sequence[LatentMove]) -> list[LatentOutcome]: ...
