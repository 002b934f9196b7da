"""A class-conditional diffusion transformer as the engine sees it: a prompt is a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from service.models.class_labels import ClassLabels
from service.models.dit import DiT, DitConfig, Layout
from service.models.latent_network import Adapters, Condition, GuidanceInput, Unadapted, classifier_free
from service.models.picture_codec import PictureCodec
from service.models.reuse import Reuse, reusing
from service.procedures.noise import FlowTimes, NoiseProcess
from service.procedures.sizes import SizeRule

SIGNATURES: dict[Layout, tuple[str, ...]] = {
    "dit": ("noise(x,t)",),
    "sit": ("velocity(x,t)",),
    "meanflow": ("velocity(x,t)", "flow_map(x,t,s)"),
}

FLOWS: dict[Layout, tuple[NoiseProcess, Mapping[str, Any]]] = {
    "sit": (NoiseProcess(times=FlowTimes(shift_of_jumps=None)), {"name": "heun", "steps": 25, "guidance": 4.0}),
    "meanflow": (NoiseProcess(times=FlowTimes(shift_of_jumps=None)), {"name": "flow_map", "steps": 2, "guidance": 1.0}),
}
"""What they were trained with, and what a request runs that says nothing: SiT's second-order ODE solver (arXiv 2401.08740),
MeanFlow's two jumps, its guidance being part of what it was trained towards (arXiv 2505.13447)."""


class ClassConditional(Unadapted):
    """A LatentNetwork over a `DiT`. Time runs from 1 (noise) to 0 (data), or over DiT's steps 999 to 0; a network for which
    time 1 is data, as for SiT, is told 1 - t here, and its velocity has its sign turned."""

    scorers: tuple[str, ...] = ()
    reuses = True
    own_guidance = False
    run_by = "torch"

    def __init__(self, network: DiT, codec: PictureCodec, noise: NoiseProcess, procedure: Mapping[str, Any]) -> None:
        """Raises ValueError where the codec's latents are not the network's."""
        config = network.config
        if codec.channels != config.channels:
            raise ValueError(f"the network takes {config.channels} channels, and pictures are latents of {codec.channels}")
        self.network, self.codec, self.noise, self.default_procedure = network, codec, noise, procedure
        self.signature = SIGNATURES[config.layout]
        self.guidance_input: GuidanceInput = "always" if config.guidance_input else "no"
        self.guidance_range = config.guidance_range if config.guidance_input else None
        self.sizes = SizeRule.only(config.input_size * codec.factor, config.input_size * codec.factor)
        self.decodes = codec.factor > 1
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self.labels = class_labels(config)

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """(C, H, W) of the latent of a picture of so many pixels."""
        return self.network.config.channels, height // self.codec.factor, width // self.codec.factor

    def tokens(self, width: int, height: int) -> int:
        """Patches of a picture."""
        side = self.codec.factor * self.network.config.patch_size
        return (width // side) * (height // side)

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        """The class of each text. Raises ValueError, in words for a client, for what is no class of this model."""
        device = self.network.pos_embed.device
        return [Condition({"label": torch.tensor(self.labels.number(text), device=device)}) for text in texts]

    def evaluate(
        self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, conditions: Sequence[Condition], adapters: Sequence[Adapters]
    ) -> Tensor:
        """The raw output for latents float32 [R, C, H, W]: the noise, or the velocity from noise to data's end of time."""
        return self.evaluate_packed(x, t, s, guidance, *self.pack(conditions))

    def pack(self, conditions: Sequence[Condition]) -> tuple[Tensor, ...]:
        """Classes int64 [R]."""
        return (torch.stack([condition.tensors["label"] for condition in conditions]),)

    def evaluate_packed(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, *packed: Tensor) -> Tensor:
        """The same of classes."""
        (labels,) = packed
        if self.network.config.data_time == 1 and self.network.config.layout != "dit":
            return -self.network(x, 1.0 - t, 1.0 - s, guidance, labels).float()
        return self.network(x, t, s, guidance, labels).float()

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
        """Classifier-free guidance of outputs [R, C, H, W] by scales [R], of all channels alike."""
        return classifier_free(conditional, unconditional, scale)

    def reusing(self, rows: Sequence[Reuse | None]) -> AbstractContextManager[None]:
        """For one `evaluate` whose rows reuse what these remember."""
        return reusing(self.network, rows)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents float32 [R, C, H, W] as pictures uint8 [R, H, W, 3]."""
        return self.codec.decode(latents)

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures uint8 [R, H, W, 3] as latents float32 [R, C, H, W]."""
        return self.codec.embed(pictures)


def class_labels(config: DitConfig) -> ClassLabels:
    return ClassLabels(config.classes, config.labels, config.classes if config.null_class else None)
