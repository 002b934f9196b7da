"""The processes that hold the other parts of a divided model.

The engine's process is rank 0 and starts them. They get messages on their standard input and leave when it closes, which it does
however the engine ends. When one of them ends that was not told to, the engine's process ends too: half a model is of no use, and
whoever waits for that rank would wait forever. Whoever watches the engine starts all of it again.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import msgspec
import torch
from torch import Tensor

from service.logs import LogStyle
from service.models.collective import Group
from service.models.errors import ModelError
from service.models.parallel_decoder import ParallelDecoder
from service.workers.block_pool import BlockPool
from service.workers.forward import ForwardOutput
from service.workers.packed_rows import PackedRows
from service.workers.paged_cache import PagedCache
from service.workers.rank_messages import Clear, Embed, Load, Loaded, Move, Run, Serve, ToRank, read, write
from service.workers.threads import Threads
from service.workers.torch_forward import TorchForward

log = logging.getLogger("stride.ranks")

LOST_EXIT = 4
LAST_LOOK_SECONDS = 0.5
"""A rank that was killed closes its connections a moment before it can be seen to have ended."""


class Ranks:
    """Ranks 1 to `size` - 1 of a model `name`, from the start of their processes until `close`, which also comes when nobody
    has this object any more, and at the process' end."""

    def __init__(self, name: str, size: int, log_style: LogStyle | None = None) -> None:
        style = log_style or LogStyle()
        self.size = size
        self._name = name
        self._encoder = msgspec.msgpack.Encoder()
        self._answers = msgspec.msgpack.Decoder(Loaded)
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "service.workers.rank_process", str(rank), name, style.level, style.format],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            for rank in range(1, size)
        ]  # fmt: skip
        closing = threading.Event()
        self.close = weakref.finalize(self, _close, self._processes, closing)
        for rank, process in enumerate(self._processes, 1):
            threading.Thread(target=_watch, args=(name, rank, process, closing), daemon=True).start()

    def begin_loading(self, model: str, device: torch.device, kv_memory: int) -> None:
        """Of what `--model` names: rank r on the r-th device of this kind. `loaded` waits for it."""
        for rank, process in enumerate(self._processes, 1):
            self._write(process, Load(model, str(rank_device(device, rank)), kv_memory))

    def loaded(self) -> None:
        """Raises ModelError where a rank cannot serve its part."""
        errors = [self._answer(process) for process in self._processes]
        for rank, error in enumerate(errors, 1):
            if error:
                raise ModelError(f"{error} (rank {rank})")

    def lead(
        self, network: ParallelDecoder, pool: BlockPool, device: torch.device, threads: Threads, batch_invariant: bool
    ) -> tuple[LedCache, LedForward]:
        """A cache and a forward of this process' part that the other ranks follow."""
        # Where they meet is forgotten as soon as they have, so that nothing is left however this process ends.
        with tempfile.TemporaryDirectory(prefix="stride-ranks-") as directory:
            store = Path(directory) / "store"
            self.send(Serve(str(store), pool.blocks, pool.block_size, threads.few, threads.every, batch_invariant))
            network.group.join(store, device, batch_invariant)
        cache = LedCache(self, network, pool, device)
        return cache, LedForward(self, network.group, TorchForward(network, cache, threads, batch_invariant))

    def send(self, message: ToRank) -> None:
        encoded = self._encoder.encode(message)
        for process in self._processes:
            self._write(process, encoded)

    def lost(self, why: object) -> NoReturn:
        """Ends this process: the ranks are no longer at the same place, or one of them is gone, which then is what is told."""
        latest = time.monotonic() + LAST_LOOK_SECONDS
        while time.monotonic() < latest:
            for rank, process in enumerate(self._processes, 1):
                if (code := process.poll()) is not None:
                    _end(self._name, _ended(rank, code))
            time.sleep(0.01)
        _end(self._name, str(why))

    def _write(self, process: subprocess.Popen[bytes], message: ToRank | bytes) -> None:
        encoded = message if isinstance(message, bytes) else self._encoder.encode(message)
        try:
            write(cast(BinaryIO, process.stdin), encoded)
        except OSError as error:
            self.lost(f"a rank cannot be told anything: {error}")

    def _answer(self, process: subprocess.Popen[bytes]) -> str:
        answer = read(cast(BinaryIO, process.stdout))
        if answer is None:
            self.lost("a rank ended while it loaded")
        return self._answers.decode(answer).error


class LedCache(PagedCache):
    """This process' part of the cache; what is done to blocks is done by all ranks."""

    def __init__(self, ranks: Ranks, network: ParallelDecoder, pool: BlockPool, device: torch.device) -> None:
        super().__init__(network.config.widths(), pool, network.dtype, device)
        self._ranks = ranks

    def move(self, sources: list[int], targets: list[int]) -> None:
        self._ranks.send(Move(sources, targets))
        super().move(sources, targets)

    def clear(self, blocks: list[int]) -> None:
        self._ranks.send(Clear(blocks))
        super().clear(blocks)


class LedForward:
    """A `Forward` by all ranks together. An error in one leaves the others waiting, so it ends the process."""

    def __init__(self, ranks: Ranks, group: Group, forward: TorchForward) -> None:
        self.ranks = ranks
        self._group = group
        self._forward = forward

    def __call__(self, packed: PackedRows, inputs: Tensor | None = None, states: bool = False) -> ForwardOutput:
        """`inputs` are what `embed` gave last."""
        self.ranks.send(Run(packed, inputs is not None))
        try:
            return self._forward(packed, inputs, states)
        except Exception as error:
            self.ranks.lost(error)

    def embed(self, tokens: Tensor) -> Tensor:
        self.ranks.send(Embed(len(tokens)))
        try:
            return self._forward.embed(self._group.broadcast(tokens))
        except Exception as error:
            self.ranks.lost(error)


def rank_device(device: torch.device, rank: int) -> torch.device:
    return torch.device("cuda", rank) if device.type == "cuda" else device


def _watch(name: str, rank: int, process: subprocess.Popen[bytes], closing: threading.Event) -> None:
    code = process.wait()
    if not closing.is_set():
        _end(name, _ended(rank, code))


def _ended(rank: int, code: int) -> str:
    return f"rank {rank} ended with code {code}"


def _end(name: str, why: str) -> NoReturn:
    log.critical("%s: %s; an engine without one of its ranks is of no use and ends", name, why)
    logging.shutdown()
    os._exit(LOST_EXIT)


def _close(processes: list[subprocess.Popen[bytes]], closing: threading.Event) -> None:
    closing.set()
    for process in processes:
        process.kill()  # it has nothing that is worth waiting for
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):  # what it was not told any more
                    stream.close()
