"""Texts as token ids and as what text encoders make of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def token_ids(tokenizer: Any, texts: Sequence[str], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids of every text, cut or padded to `length`, and which are no padding: int64 [R, length] each."""
    tokens = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return tokens.input_ids.to(device), tokens.attention_mask.to(device)


def clip_states(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """CLIP's hidden states before its last layer [R, T, width], and its projected text embedding [R, width]."""
    ids, _ = token_ids(tokenizer, texts, tokenizer.model_max_length, encoder.device)
    output = encoder(ids, output_hidden_states=True)
    return output.hidden_states[-2], output[0]


def clip_pooled(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> Tensor:
    """CLIP's summary of each text, without a projection: [R, width]."""
    ids, _ = token_ids(tokenizer, texts, tokenizer.model_max_length, encoder.device)
    return encoder(ids).pooler_output


def t5_states(tokenizer: Any, encoder: Any, texts: Sequence[str], length: int) -> Tensor:
    """T5's last hidden states [R, length, width]; padding is encoded like words, as the networks were trained with it."""
    ids, _ = token_ids(tokenizer, texts, length, encoder.device)
    return encoder(ids)[0].to(encoder.dtype)


def spared(*modules: tuple[Any, str]) -> None:
    """Frees what a text encoder holds and its states do not need: heads, eyes. (module, attribute) each, where it has one."""
    for module, attribute in modules:
        if hasattr(module, attribute):
            setattr(module, attribute, nn.Identity())


def chat_prompts(tokenizer: Any, texts: Sequence[str], thinking: bool) -> list[str]:
    """Every text as what a user says, with the opening of an answer, by the tokeniser's own chat template."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        for text in texts
    ]
