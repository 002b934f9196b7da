"""A rank of a divided model other than the first: holds its part of the weights and the cache, and follows.

Run as `python -m service.workers.rank_process RANK MODEL_NAME LOG_LEVEL LOG_FORMAT`, with messages of `rank_messages` on the
standard input. It ends when that closes, whatever it is doing. It logs as the server does, every line with model and rank.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import msgspec
import torch

from service.logs import LogFormat, configure_logging
from service.models.loading import ModelError, ModelSpec, TextModel, load_model
from service.models.parallel_decoder import ParallelDecoder
from service.workers.block_pool import BlockPool
from service.workers.packed_rows import PackedRows
from service.workers.paged_cache import PagedCache
from service.workers.rank_messages import Clear, Embed, Load, Loaded, Move, Run, Serve, ToRank, read, write
from service.workers.threads import Threads
from service.workers.torch_forward import TorchForward

log = logging.getLogger("stride.ranks")

FAILED_EXIT = 1


class Follower:
    """One rank's model, by turns loaded, served and run as it is told."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._network: ParallelDecoder | None = None
        self._device = torch.device("cpu")
        self._cache: PagedCache | None = None
        self._forward: TorchForward | None = None
        self._embedded: torch.Tensor | None = None

    def load(self, message: Load) -> Loaded:
        self._network = self._cache = self._forward = self._embedded = None
        self._device = torch.device(message.device)
        try:
            model = load_model(ModelSpec.parse(message.model), self._device, message.kv_memory, self._rank)
        except ModelError as error:
            return Loaded(str(error))
        except Exception as error:  # memory that runs out, a device that is not there: no other try will go better
            return Loaded(f"its part cannot be loaded: {error}")
        assert isinstance(model, TextModel) and isinstance(model.network, ParallelDecoder)
        self._network = model.network
        return Loaded()

    def serve(self, message: Serve) -> None:
        assert self._network is not None
        pool, threads = BlockPool(message.blocks, message.block_size), Threads(message.few_threads, message.every_thread)
        self._network.group.join(Path(message.store), self._device, message.batch_invariant)
        self._cache = PagedCache.of(self._network.config, pool, self._network.dtype, self._device)
        self._forward = TorchForward(self._network, self._cache, threads, message.batch_invariant)

    def run(self, packed: PackedRows, embedded: bool) -> None:
        assert self._forward is not None
        self._forward(packed, self._embedded if embedded else None)

    def embed(self, count: int) -> None:
        assert self._forward is not None and self._network is not None
        tokens = torch.empty(count, dtype=torch.int64, device=self._device)
        self._embedded = self._forward.embed(self._network.group.broadcast(tokens))

    @property
    def cache(self) -> PagedCache:
        assert self._cache is not None
        return self._cache


@torch.inference_mode()
def follow(follower: Follower, inbox: queue.SimpleQueue[bytes], answers: BinaryIO) -> NoReturn:
    decoder, encoder = msgspec.msgpack.Decoder(ToRank), msgspec.msgpack.Encoder()
    while True:
        match decoder.decode(inbox.get()):
            case Load() as message:
                write(answers, encoder.encode(follower.load(message)))
            case Serve() as message:
                follower.serve(message)
            case Run(packed=packed, embedded=embedded):
                follower.run(packed, embedded)
            case Embed(count=count):
                follower.embed(count)
            case Move(sources=sources, targets=targets):
                follower.cache.move(sources, targets)
            case Clear(blocks=blocks):
                follower.cache.clear(blocks)


def _listen(stream: BinaryIO, inbox: queue.SimpleQueue[bytes]) -> None:
    while (message := read(stream)) is not None:
        inbox.put(message)
    # At once: the forward may be waiting for a rank that is gone.
    os._exit(0)


def main() -> NoReturn:
    # Signals to all processes of a terminal or a service are the engine's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The standard output is for answers: what a library prints must not end up among them.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    number, name, level, log_format = sys.argv[1:]
    rank = int(number)
    configure_logging(level, cast(LogFormat, log_format), "rank", model=name, rank=rank)
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, inbox), daemon=True).start()
    try:
        follow(Follower(rank), inbox, answers)
    except Exception as error:
        log.critical("the rank ends: %s", type(error).__name__, exc_info=True)
        logging.shutdown()
        # The interpreter's own end would abort: a thread of it waits at the standard input.
        os._exit(FAILED_EXIT)


if __name__ == "__main__":
    main()
