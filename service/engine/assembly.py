"""From settings to an engine: every model on the device, with a card, memory and a lane."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from service.engine.lane import Lane, Limits
from service.engine.loop import Engine, Served
from service.engine.messages import ModelCard
from service.procedures.block_diffusion_parameters import BlockDiffusionParameters
from service.procedures.registry import runnable
from service.settings import Settings
from service.workers.hosting import Hosting, ImageHost, ModelError, TextHost, host

__all__ = ["ModelError", "build_engine"]


def build_engine(settings: Settings, clock: Callable[[], float] = time.monotonic) -> Engine:
    """`clock` gives monotonic seconds. Raises ModelError when a model cannot be served, or when two have one name."""
    hosting = Hosting(
        settings.device, settings.threads, settings.kv_memory, settings.kv_block, settings.max_running, settings.batch_invariant
    )  # fmt: skip
    limits = Limits(settings.row_budget, settings.token_budget, settings.max_running)
    served: dict[str, Served] = {}
    for spec in settings.models:
        hosted = host(spec, hosting)
        if hosted.name in served:
            raise ModelError(f"two models are called {hosted.name!r}")
        card = _text_card(hosted) if isinstance(hosted, TextHost) else _image_card(hosted)
        shares = settings.prefix_cache and card.attention != "full"
        served[hosted.name] = Served(card, Lane(hosted.pool, limits, shares), hosted.worker)
    return Engine(list(served.values()), clock)


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
        guidance_input=False,
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


def _image_card(model: ImageHost) -> ModelCard:
    config = model.config
    return ModelCard(
        kind="image",
        guidance_input=bool(config.signature["guidance_input"]),
        vocab_size=config.vocab_size,
        max_model_len=config.max_text_tokens,
        sizes=[(config.image_size, config.image_size)],
        guidance_range=config.guidance_range,
        **_common(model, "image", ["velocity(x,t)", "flow_map(x,t,s)"]),
    )


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
