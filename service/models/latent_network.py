"""What the engine needs of a model that makes pictures, whatever is inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from service.models.reuse_memory import Reuse
from service.procedures.noise import NoiseProcess
from service.procedures.picture_rows import GuidanceInput
from service.procedures.sizes import SizeRule

Adapters = tuple[tuple[str, float], ...]
"""Names and scales of the LoRA adapters that one row uses; mostly none."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What one text, or one class, became: tensors by the network's own names, of this text alone, without a batch dimension,
    on the network's device."""

    tensors: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class LatentNetwork(Protocol):
    """A model that refines a latent: texts become conditions, a latent is evaluated many times, and becomes a picture.

    Rows of one call do not influence one another, and no call leaves anything behind that a later one could see.

    noise: what training did to data, and what the network returns.
    signature: entries such as "velocity(x,t)", "noise(x,t)", "data(x,t)", "consistency(x,t)", "flow_map(x,t,s)".
    guidance_input: where the scale of guidance is an argument of the network, so that no second row is needed: in no row, in
        those that are told where they go ("jumps"), or "always". guidance_range: the scales that it knows then; None: all.
    default_procedure: what a request runs that says nothing: {"name": "euler", "steps": 28, "guidance": 4.5}.
    sizes: of pictures.
    adapters: names of the LoRA adapters that a request may ask for; text_adapters: of those that change what texts become.
    scorers: names of those in `service.models.scorers` that judge this model's pictures, beside those that judge any.
    reuses: whether rows can reuse what the network's blocks said before (`reusing`).
    decodes: whether latents go through a network of their own to become pictures; where not, the latent is the picture.
    own_guidance: whether `guide` is anything but classifier-free guidance.
    run_by: what computes it, for the log; parameters: how many there are.
    """

    noise: NoiseProcess
    signature: tuple[str, ...]
    guidance_input: GuidanceInput
    guidance_range: tuple[float, float] | None
    sizes: SizeRule
    adapters: tuple[str, ...]
    text_adapters: tuple[str, ...]
    scorers: tuple[str, ...]
    reuses: bool
    decodes: bool
    own_guidance: bool
    run_by: str
    parameters: int

    @property
    def default_procedure(self) -> Mapping[str, Any]: ...

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """(C, H, W) of the latent of a picture of so many pixels."""
        ...

    def tokens(self, width: int, height: int) -> int:
        """Length of the picture's sequence in the network, in proportion to its area: what a resolution-dependent shift depends
        on."""
        ...

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        """One condition a text; "" stands for no text. `negative` ones are what guidance leads away from, which some models
        are told in another way. Raises ValueError, in words for a client, for a text it cannot take."""
        ...

    def adapting(self, adapters: Adapters) -> AbstractContextManager[None]:
        """While it lasts, texts are encoded with these of the `text_adapters`."""
        ...

    def evaluate(
        self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, conditions: Sequence[Condition], adapters: Sequence[Adapters]
    ) -> Tensor:
        """The network's raw output, float32 like x. x float32 [R, C, H, W]; t, s (where the row goes: flow maps) and guidance
        float32 [R], times in the network's own units; R conditions, R rows' adapters."""
        ...

    def reusing(self, rows: Sequence[Reuse | None]) -> AbstractContextManager[None]:
        """For one `evaluate` within it, whose rows reuse what these remember, where the network `reuses`."""
        ...

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
        """What two outputs [R, C, H, W] with and without the text become at guidance `scale` [R]; mostly `classifier_free`."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents float32 [R, C, H, W] as pictures uint8 [R, H, W, 3]."""
        ...

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures uint8 [R, H, W, 3] as latents float32 [R, C, H, W]."""
        ...


@runtime_checkable
class PackableNetwork(Protocol):
    """A LatentNetwork whose conditions can be tensors of one shape, so that an evaluation is a function of tensors alone."""

    def pack(self, conditions: Sequence[Condition]) -> tuple[Tensor, ...]:
        """R conditions as tensors [R, ...] on the network's device, without waiting for it."""
        ...

    def evaluate_packed(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, *packed: Tensor) -> Tensor:
        """As `LatentNetwork.evaluate`, without adapters; it decides nothing by what the tensors hold."""
        ...


class Unadapted:
    """Of a LatentNetwork that has no adapters."""

    adapters: tuple[str, ...] = ()
    text_adapters: tuple[str, ...] = ()

    def adapting(self, adapters: Adapters) -> AbstractContextManager[None]:
        return nullcontext()


class ExpandingNetwork(LatentNetwork, Protocol):
    """A model that makes the tokens of a picture set by set (signature "velocity(x,t|known)"): conditions of `evaluate` are then
    those that `expand` gave, and the network's output matters at their tokens alone. Tokens are numbered row by row."""

    def expand(
        self, latents: Tensor, known: Sequence[Sequence[int]], chosen: Sequence[Sequence[int]], conditions: Sequence[Condition]
    ) -> list[Condition]:
        """A condition for the chosen tokens of each row, from its text's and from the known tokens of latents [R, C, H, W]."""
        ...

    def covered(self, tokens: Sequence[Sequence[int]], latents: Tensor) -> Tensor:
        """Where in latents [R, C, H, W] these tokens of each row are, bool [R, 1, H, W]."""
        ...


def classifier_free(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """f_u + w (f_c - f_u), each [R, C, H, W], w [R] (arXiv 2207.12598, with w = 1 for no guidance)."""
    return unconditional + scale.view(-1, 1, 1, 1) * (conditional - unconditional)
