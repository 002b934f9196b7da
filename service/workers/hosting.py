"""Puts a model on a device: weights loaded, memory reserved, a worker to run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from service.models.decoder import DecoderConfig
from service.models.flow_transformer import FlowTransformerConfig
from service.models.loading import EMBEDDED, ImageModel, ModelError, ModelSpec, TextModel, load_model
from service.workers.block_pool import BlockPool
from service.workers.latent_worker import LatentWorker
from service.workers.paged_cache import PagedCache
from service.workers.threads import Threads
from service.workers.token_worker import TokenWorker

__all__ = ["EMBEDDED", "Hosting", "ImageHost", "ModelError", "TextHost", "host"]


@dataclass(frozen=True)
class Hosting:
    """How models are put on the device: CPU threads, bytes of KV cache a text model, positions a block, latents an
    image model."""

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
    pool: BlockPool
    worker: TokenWorker


@dataclass(frozen=True)
class ImageHost:
    name: str
    folder: Path
    parameters: int
    config: FlowTransformerConfig
    pool: BlockPool
    worker: LatentWorker


def host(spec: str, hosting: Hosting) -> TextHost | ImageHost:
    """Load what `--model` names. Raises ModelError when it cannot be served."""
    device, threads = torch.device(hosting.device), Threads.of(hosting.threads)
    model = load_model(ModelSpec.parse(spec), device)
    if isinstance(model, ImageModel):
        slots = BlockPool(hosting.latents)
        latents = LatentWorker(model.network, slots, device, threads, hosting.batch_invariant)
        return ImageHost(model.spec.name, model.spec.folder, model.parameters, model.network.config, slots, latents)
    config = model.network.config
    dtype = next(model.network.parameters()).dtype
    layers, heads, size = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    block_bytes = PagedCache.block_bytes(layers, heads, size, hosting.kv_block, dtype)
    if hosting.kv_memory < block_bytes:
        raise ModelError(f"{model.spec.name}: kv_memory is {hosting.kv_memory} bytes, one block takes {block_bytes}")
    pool = BlockPool(hosting.kv_memory // block_bytes, hosting.kv_block)
    worker = TokenWorker(model.network, pool, device, threads, _unprintable(model), hosting.batch_invariant)
    return TextHost(
        model.spec.name, model.spec.folder, model.parameters, config, model.eos_token_ids, model.max_model_len, pool, worker
    )  # fmt: skip


def _unprintable(model: TextModel) -> list[int]:
    """Ids that must never be drawn: the mask token, and rows of the vocabulary that the tokeniser does not have."""
    config = model.network.config
    known = Tokenizer.from_file(str(model.spec.folder / "tokenizer.json")).get_vocab_size(with_added_tokens=True)
    mask = [] if config.mask_token_id is None else [config.mask_token_id]
    return mask + list(range(known, config.vocab_size))
