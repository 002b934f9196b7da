"""What all families have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from service.models.latent_network import Adapters, Condition, GuidanceInput, classifier_free
from service.models.lora import LoraAdapters
from service.models.pipelines.index import Part
from service.models.reuse import Reuse, reusable, reusing
from service.procedures.noise import NoiseProcess, from_scheduler_config
from service.procedures.sizes import SizeRule

SIGNED = {"v": "velocity"}
"""What a prediction is called in a signature, where it is called otherwise."""
VAE_PIXELS = 1 << 21
"""Of pictures that go through a VAE at a time: its activations are hundreds of times their size, and rows gain nothing there."""


@dataclass(frozen=True)
class Components:
    """A pipeline's networks and tokenisers by their names in model_index.json, what else that file says, what
    scheduler_config.json says, and LoRA adapters by name."""

    parts: Mapping[str, Any]
    settings: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    dtype: torch.dtype
    device: torch.device
    lora: Mapping[str, Path] = field(default_factory=dict)


class Pipeline:
    """A LatentNetwork over diffusers' components.

    A family gives `parts` (what it loads, `denoiser` among them), `encode`, `predict` and `sizes`; where they are its own,
    `latent_shape` and `tokens`; and where it is not an AutoencoderKL with one scale, `to_latents` and `from_latents`. In
    `__init__` it sets `steps` and `guidance`, its pipeline's defaults, what the scheduler's config cannot say about `noise`, and
    `patch`, where a token is not two by two latent pixels.
    """

    parts: ClassVar[Mapping[str, Part]]
    denoiser: ClassVar[str] = "transformer"
    exact: ClassVar[bool] = False
    signature: tuple[str, ...]
    guidance_input: GuidanceInput = "no"
    guidance_range: tuple[float, float] | None = None
    decodes: bool = True
    own_guidance: bool = False
    scorers: tuple[str, ...] = ()
    run_by: str = "torch"
    patch: int = 2
    steps: int
    guidance: float
    sizes: SizeRule

    def __init__(self, components: Components) -> None:
        """Raises ValueError for a scheduler whose noise is not known, ModelError for adapters that do not fit."""
        self.components = components
        self.dtype, self.device = components.dtype, components.device
        self.noise: NoiseProcess
        self.noise, self._procedure = from_scheduler_config(components.scheduler)
        self.signature = (f"{SIGNED.get(self.noise.prediction, self.noise.prediction)}(x,t)",)
        self.transformer = components.parts[self.denoiser]
        self.vae = components.parts["vae"]
        encoders = {name: part for name, part in components.parts.items() if name.startswith("text_encoder")}
        self._lora = LoraAdapters(self.transformer, components.lora, encoders)
        self.adapters, self.text_adapters = self._lora.names, self._lora.text_names
        self.reuses = reusable(self.transformer)  # no U-Net: it has no list of blocks that run one behind the other
        networks = (part for part in components.parts.values() if isinstance(part, torch.nn.Module))
        self.parameters = sum(parameter.numel() for network in networks for parameter in network.parameters())

    def time_evenly(self) -> None:
        """For pipelines that hand sigmas = linspace(1, 1 / steps, steps) to their scheduler, unless it has its own for flows."""
        if not self.components.scheduler.get("use_flow_sigmas", False):
            self.noise = self.noise.evenly()

    @property
    def default_procedure(self) -> Mapping[str, Any]:
        return {**self._procedure, "steps": self.steps, "guidance": self.guidance}

    @property
    def pixels(self) -> int:
        """Pixels along a side of the picture that one of a latent's stands for."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """(C, H, W) of the latent of a picture of so many pixels."""
        return self.transformer.config.in_channels, height // self.pixels, width // self.pixels

    def tokens(self, width: int, height: int) -> int:
        side = self.pixels * self.patch
        return (width // side) * (height // side)

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        """One condition a text; `negative` ones are what guidance leads away from."""
        raise NotImplementedError

    def adapting(self, adapters: Adapters) -> AbstractContextManager[None]:
        """While it lasts, texts are encoded with these adapters."""
        return self._lora.applied_to_texts(adapters)

    def evaluate(
        self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, conditions: Sequence[Condition], adapters: Sequence[Adapters]
    ) -> Tensor:
        """The network's raw output for latents float32 [R, C, H, W]; t in the scheduler's units, 0 to 1000."""
        with self._lora.applied(adapters, self.lengths(conditions)):
            return self.predict(x if self.exact else x.to(self.dtype), t, guidance, conditions).float()

    def reusing(self, rows: Sequence[Reuse | None]) -> AbstractContextManager[None]:
        """For one `evaluate` within it, whose rows reuse what these remember."""
        return reusing(self.transformer, rows)

    def lengths(self, conditions: Sequence[Condition]) -> Mapping[str, Sequence[int]]:
        """By the name of a module of the network that gets rows of unlike lengths behind one another: those lengths."""
        return {}

    def predict(self, x: Tensor, t: Tensor, guidance: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """As `evaluate`, x and the output in the network's dtype; where the family is `exact`, in float32."""
        raise NotImplementedError

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
        """Classifier-free guidance of outputs [R, C, H, W] by scales [R]."""
        return classifier_free(conditional, unconditional, scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents float32 [R, C, H, W] as pictures uint8 [R, H, W, 3]."""
        scaled = torch.cat([self.from_latents(some).float() for some in latents.split(self._at_once(latents))])
        return ((scaled * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures uint8 [R, H, W, 3] as the likeliest of their latents, float32 [R, C, H, W]."""
        scaled = pictures.permute(0, 3, 1, 2).to(self.device, self.vae.dtype) / 127.5 - 1.0
        rows = max(1, VAE_PIXELS // (scaled.shape[2] * scaled.shape[3]))
        return torch.cat([self.to_latents(some).float() for some in scaled.split(rows)])

    def _at_once(self, latents: Tensor) -> int:
        """How many latents the VAE takes at a time."""
        width, height = self.sizes.default
        side = width // self.latent_shape(width, height)[2]
        return max(1, VAE_PIXELS // (latents.shape[2] * latents.shape[3] * side * side))

    def from_latents(self, latents: Tensor) -> Tensor:
        """Latents as the VAE's pictures [R, 3, H, W], -1 to 1."""
        config = self.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        return self.vae.decode((latents / config.scaling_factor + shift).to(self.vae.dtype), return_dict=False)[0]

    def to_latents(self, pictures: Tensor) -> Tensor:
        """Pictures [R, 3, H, W], -1 to 1, as latents."""
        config = self.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        return (self.vae.encode(pictures).latent_dist.mode() - shift) * config.scaling_factor


def stacked(conditions: Sequence[Condition], name: str) -> Tensor:
    """One tensor of every condition, which all have it in one shape, as a batch."""
    return torch.stack([condition.tensors[name] for condition in conditions])


def padded(conditions: Sequence[Condition], name: str) -> tuple[Tensor, Tensor]:
    """Tensors [T, width] of all lengths as [R, longest, width] with zeros behind, and which positions are real: bool
    [R, longest]."""
    rows = [condition.tensors[name] for condition in conditions]
    # Not by a tensor of lengths, which would be brought to a GPU by a copy that the host waits for.
    real = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in rows]
    return pad_sequence(rows, batch_first=True), pad_sequence(real, batch_first=True)


def around(side: int, multiple_of: int, longest: int | None = None) -> SizeRule:
    """Pictures of up to four times the area of a square of `side` pixels, no side above `longest`."""
    largest = min(4 * side, longest or 4 * side)
    return SizeRule((side, side), multiple_of=multiple_of, smallest=multiple_of, largest=largest, area=4 * side * side)
