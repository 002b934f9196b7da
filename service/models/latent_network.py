"""What the engine needs of a model that makes pictures, whatever is inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from service.procedures.noise import NoiseProcess
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
    guidance_input: the scale of guidance is an argument of the network: no second row is needed.
    default_procedure: what a request runs that says nothing: {"name": "euler", "steps": 28, "guidance": 4.5}.
    sizes: of pictures.
    adapters: names of the LoRA adapters that a request may ask for.
    encodes, decodes: whether texts, and latents, go through networks of their own. Where not, the texts are all that
        `evaluate` needs, and the latent is the picture.
    run_by: what computes it, for the log; parameters: how many there are.
    """

    noise: NoiseProcess
    signature: tuple[str, ...]
    guidance_input: bool
    default_procedure: Mapping[str, Any]
    sizes: SizeRule
    adapters: tuple[str, ...]
    encodes: bool
    decodes: bool
    run_by: str
    parameters: int

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """(C, H, W) of the latent of a picture of so many pixels."""
        ...

    def tokens(self, width: int, height: int) -> int:
        """Length of the picture's sequence in the network: what a resolution-dependent shift depends on, and the cost."""
        ...

    def encode(self, texts: Sequence[str]) -> list[Condition]:
        """One condition a text; "" stands for no text. Raises ValueError, in words for a client, for a text it cannot take."""
        ...

    def evaluate(
        self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, conditions: Sequence[Condition], adapters: Sequence[Adapters]
    ) -> Tensor:
        """The network's raw output, float32 like x. x float32 [R, C, H, W]; t, s (where the row goes: flow maps) and guidance
        float32 [R], times in the network's own units; R conditions, R rows' adapters."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents float32 [R, C, H, W] as pictures uint8 [R, H, W, 3]."""
        ...

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures uint8 [R, H, W, 3] as latents float32 [R, C, H, W]."""
        ...
