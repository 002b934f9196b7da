"""Puts a model on a device: weights loaded, memory reserved, a worker to run it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from kernels.capture import CudaCapture
from service.logs import LogStyle
from service.models.decoder import DecoderConfig
from service.models.flow_network import FlowNetwork
from service.models.flow_transformer import FlowTransformer
from service.models.heads import FeatureModule
from service.models.latent_network import LatentNetwork
from service.models.loading import EMBEDDED, ImageModel, ModelError, ModelSpec, TextModel, load_model
from service.models.model_spec import parse_all, readable
from service.models.quality import read_quality
from service.procedures.quality import QualityTable
from service.procedures.speculative import MOST_BY_MASKS, scratch_of_masks
from service.workers.block_pool import BlockPool
from service.workers.latent_worker import LatentWorker
from service.workers.memory_plan import MemoryPlan, TextDemand, planned
from service.workers.paged_cache import PagedCache
from service.workers.profiling import device_memory, is_measured, picture_demand, text_forward
from service.workers.ranks import Ranks
from service.workers.streams import streams_of
from service.workers.threads import Threads
from service.workers.token_worker import TokenWorker

log = logging.getLogger("stride.models")

__all__ = ["EMBEDDED", "FlowNetwork", "Hosting", "ImageHost", "ModelError", "TextHost", "host", "host_all"]


UNMEASURED_KV_MEMORY = 256 << 20
"""Of a text model where nothing is said and nothing measured."""


@dataclass(frozen=True)
class Hosting:
    """How models are put on a device, unless their own options say otherwise: CPU threads, bytes of KV cache a text model (None:
    on a GPU what is left of `memory_fraction` of it), positions a block, requests of a model that hold memory at a time, and
    rows and query tokens of a forward. `graphs`: whether forwards are captured on a GPU. `log_style`: of the processes that hold
    parts of a divided model."""

    device: str
    threads: int
    kv_memory: int | None
    kv_block: int
    running: int
    batch_invariant: bool
    memory_fraction: float = 0.9
    rows: int = 32
    tokens: int = 512
    graphs: bool = True
    log_style: LogStyle = field(default_factory=LogStyle)


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
    """`pixels`: evaluations times pixels that a forward has memory for, where that was measured."""

    name: str
    folder: Path
    parameters: int
    network: LatentNetwork
    pool: BlockPool
    worker: LatentWorker
    quality: QualityTable | None = None
    pixels: int | None = None


@dataclass(frozen=True)
class _Unsized:
    """A text model with a cache that is just large enough for its largest forward to be measured."""

    host: TextHost
    model: TextModel
    block_bytes: int

    def demand(self, hosting: Hosting) -> TextDemand:
        pool, longest = self.host.pool, self.model.max_model_len
        needed = self.model.spec.max_model_len or min(longest, hosting.tokens)
        beyond = _beyond(self.model)
        try:
            forward = text_forward(self.host.worker, hosting.rows, hosting.tokens)
        except ModelError as error:
            raise ModelError(f"{self.host.name}: {error}") from error
        most = hosting.running * pool.blocks_for(longest + beyond)
        least = min(most, pool.blocks_for(needed + beyond))
        return TextDemand(self.host.name, forward, self.block_bytes, least, most)

    def sized(self, blocks: int) -> TextHost:
        self.host.worker.resize(blocks)
        kv_memory = blocks * self.block_bytes
        longest = _context(self.model, self.host.pool, self.block_bytes, kv_memory)
        log.info("%s: texts up to %d tokens, %s of keys and values", self.host.name, longest, readable(kv_memory))
        return replace(self.host, max_model_len=longest)


def host_all(texts: Sequence[str], hosting: Hosting) -> list[TextHost | ImageHost]:
    """Load what each `--model` names. On a GPU the memory that is left is then divided among them, by what their largest forwards
    are measured to take. Raises ModelError when one cannot be served, two have one name, or all together do not fit."""
    loaded: dict[str, TextHost | ImageHost | _Unsized] = {}
    for text, spec in zip(texts, parse_all(texts), strict=True):
        loaded[spec.name] = _load(text, spec, hosting)
    devices = [one.host.worker.device if isinstance(one, _Unsized) else one.worker.device for one in loaded.values()]
    plan = MemoryPlan()
    for device in dict.fromkeys(device for device in devices if is_measured(device)):
        own = [one for one, other in zip(loaded.values(), devices, strict=True) if other == device]
        part = _planned(own, device, hosting)
        plan = MemoryPlan(plan.blocks | part.blocks, plan.pixels | part.pixels)
    hosts: list[TextHost | ImageHost] = []
    for name, one in loaded.items():
        if isinstance(one, _Unsized):
            hosts.append(one.sized(plan.blocks[name]))
        else:
            hosts.append(replace(one, pixels=plan.pixels.get(name)) if isinstance(one, ImageHost) else one)
    for device in dict.fromkeys(devices):
        streams_of(device).settle()
    for one in hosts:
        if isinstance(one, ImageHost):
            one.worker.prepare()
        elif one.worker.device.type == "cuda" and hosting.graphs:
            _capture(one, hosting)
    return hosts


def _capture(one: TextHost, hosting: Hosting) -> None:
    """Served without, where it cannot be done: memory is short, or the network looks at numbers on its way."""
    try:
        one.worker.capture(hosting.rows, CudaCapture(one.worker.device))
    except RuntimeError as error:
        log.warning("%s: its decode forwards are not captured: %s", one.name, str(error).splitlines()[0])


def _planned(own: Sequence[TextHost | ImageHost | _Unsized], device: torch.device, hosting: Hosting) -> MemoryPlan:
    unsized = [one for one in own if isinstance(one, _Unsized)]
    texts = [one.demand(hosting) for one in unsized]
    pictures = [picture_demand(one.name, one.worker, hosting.rows) for one in own if isinstance(one, ImageHost)]
    memory = device_memory(device, hosting.memory_fraction)
    given_back = sum(one.host.pool.blocks * one.block_bytes for one in unsized)
    return planned(replace(memory, taken=memory.taken - given_back), texts, pictures)


def host(text: str, hosting: Hosting) -> TextHost | ImageHost:
    """One model that has its device for itself. Raises ModelError when it cannot be served."""
    return host_all([text], hosting)[0]


def _load(text: str, spec: ModelSpec, hosting: Hosting) -> TextHost | ImageHost | _Unsized:
    threads = Threads.of(hosting.threads)
    device = _device(spec, hosting)
    given = spec.kv_memory or hosting.kv_memory
    # The memory of several devices is not measured: each of them holds a part of a divided model.
    measured = given is None and is_measured(device) and spec.ranks == 1
    kv_memory = 0 if measured else given or UNMEASURED_KV_MEMORY
    ranks = None
    if spec.ranks > 1:
        device, threads = _first_device(spec, device), threads.shared(spec.ranks if device.type == "cpu" else 1)
        ranks = Ranks(spec.name, spec.ranks, hosting.log_style)
        ranks.begin_loading(text, device, kv_memory)
    model = load_model(spec, device, kv_memory)
    if ranks is not None:
        ranks.loaded()
    if isinstance(model, ImageModel):
        return _host_pictures(model, hosting, device, threads)
    config = model.network.config
    block_bytes = sum(PagedCache.block_bytes(c, hosting.kv_block, dtype) for c, dtype in _caches(model))
    blocks = hosting.rows + hosting.tokens // hosting.kv_block if measured else kv_memory // block_bytes
    pool = BlockPool(blocks, hosting.kv_block)
    longest = model.max_model_len if measured else _context(model, pool, block_bytes, kv_memory)
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
        f" with {spec.quantization} weights" if spec.quantization else "", worker.run_by, longest,
        "what is left" if measured else readable(kv_memory),
    )  # fmt: skip
    hosted = TextHost(
        spec.name, model.spec.folder, model.parameters, config, model.eos_token_ids, longest, model.sampling_defaults,
        model.canvas_defaults, pool, worker,
    )  # fmt: skip
    return _Unsized(hosted, model, block_bytes) if measured else hosted


def _host_pictures(model: ImageModel, hosting: Hosting, device: torch.device, threads: Threads) -> ImageHost:
    spec, loaded = model.spec, model.network
    network: LatentNetwork
    if isinstance(loaded, FlowTransformer):
        network = FlowNetwork(loaded, spec.folder / "tokenizer.json", threads.every, full=hosting.batch_invariant)
    else:
        network = loaded
    slots = BlockPool(hosting.running)
    capture = CudaCapture(device) if device.type == "cuda" and hosting.graphs else None
    worker = LatentWorker(network, slots, device, threads, hosting.batch_invariant, capture)
    log.info(
        "%s: %s, %d parameters, %s, run by %s, pictures of %s, %d at a time with %s of latents",
        spec.name, spec.folder, model.parameters, str(model.dtype).removeprefix("torch."), network.run_by,
        network.sizes.describe(), hosting.running, readable(worker.store.nbytes),
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
        # With its number: "cuda" and "cuda:0" are one device, with one memory and one order of forwards.
        device = torch.empty(0, device=device).device
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


def _beyond(model: TextModel) -> int:
    """Places beyond a text that a forward may take: those of a canvas, or of guesses by masks."""
    config = model.network.config
    masks = scratch_of_masks(MOST_BY_MASKS) if config.says_next and config.block_lengths else 0
    return max([*config.block_lengths, masks])


def _context(model: TextModel, pool: BlockPool, block_bytes: int, kv_memory: int) -> int:
    """The longest text: as long as the model knows, and as the cache has room for when nobody asked for a length."""
    positions = pool.blocks * pool.block_size - _beyond(model)
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
