"""PixArt-Σ (arXiv 2403.04692)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from service.models.latent_network import Condition
from service.models.pipelines.index import Part
from service.models.pipelines.pipeline import Components, Pipeline, around, padded

WORDS = 300


class PixArtSigma(Pipeline):
    """T5's states of the text in small letters, of any length; the network's estimate of its own variance is left aside."""

    parts: ClassVar[Mapping[str, Part]] = {
        # Published under the class that diffusers had for it before; it reads the same config as the new one.
        "transformer": Part("diffusers", ("PixArtTransformer2DModel", "Transformer2DModel")),
        "vae": Part("diffusers", ("AutoencoderKL",)),
        "text_encoder": Part("transformers", ("T5EncoderModel",)),
        "tokenizer": Part("transformers", ("T5Tokenizer", "T5TokenizerFast"), bare=True),
    }

    def __init__(self, components: Components) -> None:
        super().__init__(components)
        config = self.transformer.config
        if getattr(self.transformer, "use_additional_conditions", True):
            raise ValueError("transformer: variants that take sizes and aspect ratios (PixArt-α) are not supported")
        self.steps, self.guidance = 20, 4.5
        self.patch = config.patch_size
        self.sizes = around(config.sample_size * self.pixels, config.patch_size * self.pixels)

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        tokenizer, encoder = self.components.parts["tokenizer"], self.components.parts["text_encoder"]
        prompts = [text.lower().strip() for text in texts]
        tokens = tokenizer(prompts, padding=True, max_length=WORDS, truncation=True, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        states = encoder(ids, attention_mask=mask)[0]
        return [Condition({"states": row[real]}) for row, real in zip(states, mask.bool(), strict=True)]

    def predict(self, x: Tensor, t: Tensor, guidance: Tensor, conditions: Sequence[Condition]) -> Tensor:
        states, real = padded(conditions, "states")
        out = self.transformer(
            x,
            encoder_hidden_states=states,
            encoder_attention_mask=real,
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]
