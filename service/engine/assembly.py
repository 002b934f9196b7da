"""From settings to an engine: load every model, reserve its memory, give it a lane."""

from __future__ import annotations

import os
from typing import Any

import torch

from service.engine.loop import Engine, Served
from service.engine.messages import ModelCard
from service.engine.scheduler import Lane, Limits
from service.models.loading import ImageModel, ModelSpec, TextModel, load_model
from service.procedures.registry import runnable
from service.settings import Settings
from service.workers.latent_worker import LatentWorker
from service.workers.paged_cache import BlockPool, PagedCache
from service.workers.token_worker import TokenWorker


def build_engine(settings: Settings) -> Engine:
    """Raises service.models.loading.ModelError when a model cannot be served."""
    torch.set_num_threads(settings.threads or max(1, len(os.sched_getaffinity(0)) - 1))
    device = torch.device(settings.device)
    return Engine([_serve(load_model(ModelSpec.parse(text), device), settings, device) for text in settings.models])


def _serve(model: TextModel | ImageModel, settings: Settings, device: torch.device) -> Served:
    limits = Limits(settings.row_budget, settings.token_budget, settings.max_running)
    if isinstance(model, ImageModel):
        slots = BlockPool(settings.max_running)
        return Served(_image_card(model), Lane(slots, limits), LatentWorker(model.network, slots, device))
    config = model.network.config
    dtype = next(model.network.parameters()).dtype
    layers, heads, size = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    block_bytes = PagedCache.block_bytes(layers, heads, size, settings.kv_block, dtype)
    pool = BlockPool(max(1, settings.kv_memory // block_bytes), settings.kv_block)
    card = _text_card(model)
    never = _unprintable(model)
    return Served(card, Lane(pool, limits), TokenWorker(model.network, pool, device, never))


def _text_card(model: TextModel) -> ModelCard:
    config = model.network.config
    signature = ["next(tokens)"] + (["canvas(prefix, block)"] if config.block_lengths else [])
    return ModelCard(
        kind="text",
        signature=signature,
        guidance_input=False,
        vocab_size=config.vocab_size,
        max_model_len=model.max_model_len,
        eos_token_ids=list(model.eos_token_ids),
        mask_token_id=config.mask_token_id,
        block_lengths=list(config.block_lengths),
        **_common(model, "text", signature),
    )


def _image_card(model: ImageModel) -> ModelCard:
    config = model.network.config
    signature = ["velocity(x,t)", "flow_map(x,t,s)"]
    return ModelCard(
        kind="image",
        signature=signature,
        guidance_input=bool(config.signature["guidance_input"]),
        vocab_size=config.vocab_size,
        max_model_len=config.max_text_tokens,
        sizes=[(config.image_size, config.image_size)],
        **_common(model, "image", signature),
    )


def _common(model: TextModel | ImageModel, kind: str, signature: list[str]) -> dict[str, Any]:
    procedures = runnable(kind, frozenset(signature))
    preferred = "flow_map" if "flow_map" in procedures else procedures[0]
    return {
        "name": model.spec.name,
        "folder": str(model.spec.folder),
        "procedures": procedures,
        "default_procedure": preferred,
        "parameters_count": model.parameters,
    }


def _unprintable(model: TextModel) -> list[int]:
    """Ids that must never be drawn: the mask token, and rows of the vocabulary that the tokeniser does not have."""
    from tokenizers import Tokenizer

    config = model.network.config
    known = Tokenizer.from_file(str(model.spec.folder / "tokenizer.json")).get_vocab_size(with_added_tokens=True)
    mask = [] if config.mask_token_id is None else [config.mask_token_id]
    return mask + list(range(known, config.vocab_size))
