"""From settings to an engine: every model on the device, with a card, memory and a lane."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import msgspec

from service.engine.lane import Lane, Limits
from service.engine.loop import Engine, Served
from service.engine.messages import ModelCard
from service.engine.validation import InvalidField, procedure_parameters
from service.logs import LogStyle
from service.procedures.block_diffusion_parameters import BlockDiffusionParameters
from service.procedures.registry import runnable
from service.settings import Settings
from service.workers.hosting import FlowNetwork, Hosting, ImageHost, ModelError, TextHost, host_all

__all__ = ["ModelError", "build_engine"]


def build_engine(settings: Settings, clock: Callable[[], float] = time.monotonic) -> Engine:
    """`clock` gives monotonic seconds. Raises ModelError when a model cannot be served, or when two have one name."""
    hosting = Hosting(
        settings.device, settings.threads, settings.kv_memory, settings.kv_block, settings.max_running, settings.batch_invariant,
        settings.memory_fraction, settings.row_budget, settings.token_budget, settings.cuda_graphs,
        LogStyle(settings.log_level, settings.log_format),
    )  # fmt: skip
    limits = Limits(settings.row_budget, settings.token_budget, settings.max_running)
    served: dict[str, Served] = {}
    for hosted in host_all(settings.models, hosting):
        if isinstance(hosted, TextHost):
            card = _text_card(hosted)
            shares = settings.prefix_cache and card.attention != "full"
            served[hosted.name] = Served(card, Lane(hosted.pool, limits, shares), hosted.worker)
        else:
            served[hosted.name] = picture_model(hosted, replace(limits, pixels=hosted.pixels))
    overlap = settings.device.startswith("cuda") if settings.overlap is None else settings.overlap
    return Engine(list(served.values()), clock, overlap)


def _drafters(signature: list[str], mask_token: int | None, loaded: Iterable[str] = ()) -> list[str]:
    """Who can guess a model's tokens: masks in a network that knows them beside next tokens, and those that were `loaded`."""
    if "next(tokens)" not in signature:
        return []
    masks = "canvas(prefix, block)" in signature and mask_token is not None
    return ["ngram", *(["mask"] if masks else []), *loaded]


def _text_card(model: TextHost) -> ModelCard:
    config = model.config
    signature = ["next(tokens)"] if config.says_next else []
    signature += ["canvas(prefix, block)"] if config.block_lengths else []
    signature += ["canvas(sequence)"] if config.attention == "full" else []
    try:
        msgspec.convert({"block_length": max(config.block_lengths, default=1), **model.canvas_defaults}, BlockDiffusionParameters)
    except msgspec.ValidationError as error:
        raise ModelError(f"{model.name}: generation_config.json: {error}") from error
    return ModelCard(
        kind="text",
        vocab_size=config.vocab_size,
        max_model_len=model.max_model_len,
        eos_token_ids=list(model.eos_token_ids),
        mask_token_id=config.mask_token_id,
        block_lengths=list(config.block_lengths),
        attention=config.attention,
        shift=config.shift,
        conditioned=config.self_conditioning,
        sampling_defaults=dict(model.sampling_defaults),
        canvas_defaults=dict(model.canvas_defaults),
        drafters=_drafters(signature, config.mask_token_id, model.worker.drafters),
        **_common(model, "text", signature),
    )


def picture_model(model: ImageHost, limits: Limits) -> Served:
    """Raises ModelError where the network's own default procedure cannot be run by it."""
    return Served(_image_card(model), Lane(model.pool, limits, prefix_cache=False), model.worker)


def _image_card(model: ImageHost) -> ModelCard:
    network = model.network
    closed = network.config if isinstance(network, FlowNetwork) else None
    defaults = dict(network.default_procedure)
    width, height = network.sizes.default
    common = _common(model, "image", list(network.signature))
    card = ModelCard(
        kind="image",
        vocab_size=closed.vocab_size if closed else 0,
        max_model_len=closed.max_text_tokens if closed else 0,
        sizes=network.sizes,
        pixels_per_token=round(math.sqrt(width * height / network.tokens(width, height))),
        noise=network.noise,
        guidance_input=network.guidance_input,
        guidance_range=network.guidance_range,
        reuses=network.reuses,
        adapters=list(network.adapters),
        scorers=list(model.worker.scorers),
        **common | {"default_procedure": defaults.pop("name")},
        procedure_defaults=defaults,
        quality=model.quality,
    )
    try:
        procedure_parameters(card, None)
    except InvalidField as error:
        raise ModelError(f"{model.name}: its default procedure cannot be run: {error}") from error
    return card


def _common(model: TextHost | ImageHost, kind: str, signature: list[str]) -> dict[str, Any]:
    procedures = runnable(kind, frozenset(signature))
    return {
        "name": model.name,
        "folder": str(model.folder),
        "signature": signature,
        "procedures": procedures,
        "default_procedure": "flow_map" if "flow_map" in procedures else procedures[0],
        "parameters_count": model.parameters,
    }
