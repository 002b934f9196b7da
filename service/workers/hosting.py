"""Puts a model on a device: weights loaded, memory reserved, a worker to run it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from service.models.decoder import DecoderConfig
from service.models.flow_network import FlowNetwork
from service.models.flow_transformer import FlowTransformer
from service.models.heads import FeatureModule
from service.models.latent_network import LatentNetwork
from service.models.loading import EMBEDDED, ImageModel, ModelError, ModelSpec, TextModel, load_model
from service.models.model_spec import readable
from service.models.quality import read_quality
from service.procedures.quality import QualityTable
from service.workers.block_pool import BlockPool
from service.workers.latent_worker import LatentWorker
from service.workers.paged_cache import PagedCache
from service.workers.ranks import Ranks
from service.workers.threads import Threads
from service.workers.token_worker import TokenWorker

log = logging.getLogger("stride.models")

__all__ = ["EMBEDDED", "FlowNetwork", "Hosting", "ImageHost", "ModelError", "TextHost", "host"]


@dataclass(frozen=True)
class Hosting:
    """How models are put on a device, unless their own options say otherwise: CPU threads, bytes of KV cache a text model,
    positions a block, latents an image model."""

    device: str
    threads: int
    kv_memory: int
    kv_block: int
    latents: int
    batch_invariant: bool


@dataclass(frozen=True)
class TextHost:
    name: str
    folder: Path
    parameters: int
    config: DecoderConfig
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    sampling_defaults: Mapping[str, float]
    canvas_defaults: Mapping[str, Any]
    pool: BlockPool
    worker: TokenWorker


@dataclass(frozen=True)
class ImageHost:
    name: str
    folder: Path
    parameters: int
    network: LatentNetwork
    pool: BlockPool
    worker: LatentWorker
    quality: QualityTable | None = None


def host(text: str, hosting: Hosting) -> TextHost | ImageHost:
    """Load what `--model` names. Raises ModelError when it cannot be served."""
    spec, threads = ModelSpec.parse(text), Threads.of(hosting.threads)
    device, kv_memory = _device(spec, hosting), spec.kv_memory or hosting.kv_memory
    ranks = None
    if spec.ranks > 1:
        device, threads = _first_device(spec, device), threads.shared(spec.ranks if device.type == "cpu" else 1)
        ranks = Ranks(spec.name, spec.ranks)
        ranks.begin_loading(text, device, kv_memory)
    model = load_model(spec, device, kv_memory)
    if ranks is not None:
        ranks.loaded()
    if isinstance(model, ImageModel):
        return _host_pictures(model, hosting, device, threads)
    config = model.network.config
    block_bytes = sum(PagedCache.block_bytes(c, hosting.kv_block, dtype) for c, dtype in _caches(model))
    pool = BlockPool(kv_memory // block_bytes, hosting.kv_block)
    longest = _context(model, pool, block_bytes, kv_memory)
    draft_model = None if model.draft_model is None else model.draft_model.network
    try:
        worker = TokenWorker(
            model.network, pool, device, threads, _undrawable(model), hosting.batch_invariant, model.heads, draft_model,
            ranks,
        )  # fmt: skip
    except ModelError as error:
        raise ModelError(f"{spec.name}: {error}") from error
    log.info(
        "%s: %s, %d parameters, %s%s, run by %s, texts up to %d tokens, %s of keys and values",
        spec.name, model.spec.folder, model.parameters, str(worker.cache.store.dtype).removeprefix("torch."),
        f" with {spec.quantization} weights" if spec.quantization else "", worker.run_by, longest, readable(kv_memory),
    )  # fmt: skip
    return TextHost(
        spec.name, model.spec.folder, model.parameters, config, model.eos_token_ids, longest, model.sampling_defaults,
        model.canvas_defaults, pool, worker,
    )  # fmt: skip


def _host_pictures(model: ImageModel, hosting: Hosting, device: torch.device, threads: Threads) -> ImageHost:
    spec, loaded = model.spec, model.network
    network: LatentNetwork
    if isinstance(loaded, FlowTransformer):
        network = FlowNetwork(loaded, spec.folder / "tokenizer.json", threads.every, full=hosting.batch_invariant)
    else:
        network = loaded
    slots = BlockPool(hosting.latents)
    worker = LatentWorker(network, slots, device, threads, hosting.batch_invariant)
    log.info(
        "%s: %s, %d parameters, %s, run by %s, pictures of %s, %d at a time with %s of latents",
        spec.name, spec.folder, model.parameters, str(model.dtype).removeprefix("torch."), network.run_by,
        network.sizes.describe(), hosting.latents, readable(worker.store.nbytes),
    )  # fmt: skip
    return ImageHost(spec.name, spec.folder, model.parameters, network, slots, worker, read_quality(spec.folder))


def _caches(model: TextModel) -> list[tuple[DecoderConfig, torch.dtype]]:
    """Everything that keeps keys and values of a text: the model, and what guesses for it."""
    dtype = model.network.dtype
    caches = [(model.network.config, dtype)]
    if isinstance(model.heads, FeatureModule):
        caches.append((model.heads.config, dtype))
    if model.draft_model is not None:
        caches.append((model.draft_model.network.config, model.draft_model.network.dtype))
    return caches


def _device(spec: ModelSpec, hosting: Hosting) -> torch.device:
    name = spec.device or hosting.device
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"{spec.name}: device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _first_device(spec: ModelSpec, device: torch.device) -> torch.device:
    """Of those that hold a divided model. Raises ModelError where there are not as many."""
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if device.index:
            raise ModelError(f"{spec.name}: tensor_parallel takes cuda:0 to cuda:{spec.ranks - 1}, and device is {device}")
        if count < spec.ranks:
            raise ModelError(f"{spec.name}: tensor_parallel is {spec.ranks}, and there are {count} CUDA devices")
        return torch.device("cuda", 0)
    if device.type != "cpu":
        raise ModelError(f"{spec.name}: tensor_parallel is for CPUs and CUDA devices, and device is {device}")
    return device


def _context(model: TextModel, pool: BlockPool, block_bytes: int, kv_memory: int) -> int:
    """The longest text: as long as the model knows, and as the cache has room for when nobody asked for a length."""
    # A canvas takes places beyond the text.
    positions = pool.blocks * pool.block_size - max(model.network.config.block_lengths, default=0)
    name = model.spec.name
    if positions < 1:
        raise ModelError(f"{name}: kv_memory is {kv_memory} bytes, one block takes {block_bytes}")
    if positions >= model.max_model_len:
        return model.max_model_len
    needed = readable(pool.blocks_for(model.max_model_len) * block_bytes)
    room = f"kv_memory of {readable(kv_memory)} holds {positions} tokens; {model.max_model_len} need {needed}"
    if model.spec.max_model_len is not None:
        raise ModelError(f"{name}: {room}")
    log.warning("%s: texts are limited to what fits: %s", name, room)
    return positions


def _undrawable(model: TextModel) -> list[int]:
    """Ids that must never be drawn: the mask token, and rows of the vocabulary that the tokeniser does not have."""
    config, path = model.network.config, model.spec.folder / "tokenizer.json"
    try:
        known = set(Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values())
    except Exception as error:  # the library raises nothing more specific
        raise ModelError(f"{model.spec.name}: {path}: {error}") from error
    beyond = sorted(token for token in known if token >= config.vocab_size)
    if beyond:
        log.warning(
            "%s: tokenizer.json has %d ids, from %d on, beyond the model's vocabulary of %d: prompts that hold them are refused",
            model.spec.name, len(beyond), beyond[0], config.vocab_size,
        )  # fmt: skip
    mask = set[int]() if config.mask_token_id is None else {config.mask_token_id}
    return sorted(set(range(config.vocab_size)) - known | mask)
