"""Sana (arXiv 2410.10629) and Sana-Sprint (arXiv 2503.09641)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from service.models.latent_network import Condition
from service.models.pipelines.index import Part
from service.models.pipelines.pipeline import Components, Pipeline, around, padded

WORDS = 300
INSTRUCTION = "\n".join(
    (
        "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable for image "
        "generation. Evaluate the level of detail in the user prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial relationships "
        "to create vivid and concrete scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly without overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping peacefully "
        "on a warm sunny windowsill, surrounded by pots of blooming red flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street lamps, "
        "a diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid including any additional commentary or "
        "evaluations:",
        "User Prompt: ",
    )
)
"""What stands before every prompt that the network was trained with, word for word; the encoder's states of it are dropped."""


class Sana(Pipeline):
    """Gemma 2's states of the text, read behind an instruction to describe it well; negative texts are read without it."""

    parts: ClassVar[Mapping[str, Part]] = {
        "transformer": Part("diffusers", ("SanaTransformer2DModel",)),
        "vae": Part("diffusers", ("AutoencoderDC",)),
        "text_encoder": Part("transformers", ("Gemma2Model",)),
        "tokenizer": Part("transformers", ("GemmaTokenizer", "GemmaTokenizerFast"), bare=True),
    }

    def __init__(self, components: Components) -> None:
        super().__init__(components)
        config = self.transformer.config
        if config.guidance_embeds != (self.guidance_input == "always"):
            raise ValueError(f"transformer: guidance_embeds {config.guidance_embeds} is not {type(self).__name__}'s")
        components.parts["tokenizer"].padding_side = "right"
        self._told = len(components.parts["tokenizer"].encode(INSTRUCTION))
        self.steps, self.guidance = 20, 4.5
        self.patch = config.patch_size
        self.sizes = around(config.sample_size * self.pixels, config.patch_size * self.pixels)

    @property
    def pixels(self) -> int:
        return 2 ** (len(self.vae.config.encoder_block_out_channels) - 1)

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        tokenizer, encoder = self.components.parts["tokenizer"], self.components.parts["text_encoder"]
        before, length = ("", WORDS) if negative else (INSTRUCTION, self._told + WORDS - 2)
        prompts = [before + text.lower().strip() for text in texts]
        tokens = tokenizer(prompts, padding=True, max_length=length, truncation=True, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        states = encoder(ids, attention_mask=mask)[0]
        # The first state stands for the instruction; its own last one is where the network expects the second.
        keep = torch.ones(ids.shape[1], dtype=torch.bool, device=self.device)
        if not negative:
            keep[1 : self._told - 1] = False
        return [Condition({"states": row[real & keep]}) for row, real in zip(states, mask.bool(), strict=True)]

    def predict(self, x: Tensor, t: Tensor, guidance: Tensor, conditions: Sequence[Condition]) -> Tensor:
        out = self._velocity(x, t * self.transformer.config.timestep_scale, None, conditions)
        return out[:, : x.shape[1]]

    def _velocity(self, x: Tensor, t: Tensor, guidance: Tensor | None, conditions: Sequence[Condition]) -> Tensor:
        states, real = padded(conditions, "states")
        return self.transformer(
            x.to(self.dtype),
            encoder_hidden_states=states,
            encoder_attention_mask=real,
            timestep=t,
            guidance=guidance,
            return_dict=False,
        )[0]

    def from_latents(self, latents: Tensor) -> Tensor:
        return self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype), return_dict=False)[0]

    def to_latents(self, pictures: Tensor) -> Tensor:
        return self.vae.encode(pictures, return_dict=False)[0] * self.vae.config.scaling_factor


class SanaSprint(Sana):
    """Distilled to a few steps as a continuous-time consistency model, with the scale of guidance as an input.

    The network inside is one of rectified flow, whose velocity v(z, τ) at z = (1-τ) x0 + τ ε becomes the output of TrigFlow,
    F = cos t·ε - sin t·x0 at x = cos t·x0 + sin t·ε (Sana-Sprint, section 3.1; sCM, arXiv 2410.11081, section 3):
    τ = sin t / (sin t + cos t), z = x √(τ² + (1-τ)²), F = ((1-2τ) z + (1 - 2τ + 2τ²) v) / √(τ² + (1-τ)²).
    """

    guidance_input = "always"
    exact = True

    def __init__(self, components: Components) -> None:
        super().__init__(components)
        self.signature = (*self.signature, "consistency(x,t)")
        self.steps, self.guidance = 2, 4.5

    def predict(self, x: Tensor, t: Tensor, guidance: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """t in radians, pi / 2 for noise."""
        flow_t = (t.sin() / (t.sin() + t.cos()))[:, None, None, None]
        length = (flow_t**2 + (1 - flow_t) ** 2).sqrt()
        z = x * length
        scale = guidance * self.transformer.config.guidance_embeds_scale
        velocity = self._velocity(z, flow_t.flatten(), scale, conditions).float()
        return ((1 - 2 * flow_t) * z + (1 - 2 * flow_t + 2 * flow_t**2) * velocity) / length
