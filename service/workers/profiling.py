"""What the largest forward of a model takes of a GPU's memory while it runs, found out by running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from service.models.errors import ModelError
from service.models.latent_network import LatentNetwork
from service.procedures.picture_rows import LatentRow
from service.procedures.types import Axis, TokenRow
from service.workers.latent_worker import LatentWorker
from service.workers.memory_plan import DeviceMemory, PictureDemand
from service.workers.token_worker import TokenWorker
from service.workers.types import DecodeMove, Draws, Encoded, EncodeMove, Latent, LatentMove, RefineMove, TokenMove


def is_measured(device: torch.device) -> bool:
    """Whether models there get what memory is left, where nothing else is said."""
    return device.type == "cuda"


def device_memory(device: torch.device, fraction: float) -> DeviceMemory:
    """Of a CUDA device, as it is now."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(str(device), total, total - free, fraction)


def peak(device: torch.device, run: Callable[[], object]) -> int:
    """Bytes of a CUDA device that a call takes beyond what was taken before it. Raises ModelError where there are not as many."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        run()
    except torch.OutOfMemoryError as error:
        raise ModelError(f"its largest forward does not fit into what {device} has left: {str(error).splitlines()[0]}") from error
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def text_moves(rows: int, tokens: int, block_size: int) -> list[TokenMove]:
    """The largest forward: as many requests as there may be, with as many tokens between them, each read in the dearest way. A
    request's blocks lie behind those of the one before it."""
    each = max(1, tokens // rows)
    blocks = -(-each // block_size)
    row = TokenRow(Axis.EXPAND, (0,) * each, 0, "causal", True, (each - 1,))
    draws = Draws(0, top_k=2, top_p=0.9, logprobs=1)
    return [TokenMove((row,), list(range(i * blocks, (i + 1) * blocks)), draws) for i in range(min(rows, tokens))]


def text_forward(worker: TokenWorker, rows: int, tokens: int) -> int:
    """Bytes. The worker's pool must have the blocks of `text_moves`."""
    moves = text_moves(rows, tokens, worker.pool.block_size)
    return peak(worker.device, lambda: worker.run(moves))


def picture_demand(name: str, worker: LatentWorker, rows: int) -> PictureDemand:
    """For a picture with guidance at least, and for so many at most; of the size that a request gets that says none."""
    network, device = worker.network, worker.device
    width, height = network.sizes.default
    pixels = width * height
    encoded, beside = _encoded(worker, width, height)
    slots = range(worker.pool.blocks)
    one, two = (peak(device, partial(worker.run, refining(network, encoded, slots, count))) for count in (1, 2))
    if network.decodes:
        latent = Latent(torch.zeros(network.latent_shape(width, height), device=device))
        beside = max(beside, peak(device, lambda: worker.run([DecodeMove(latent)])))
    slope = max(0, two - one) / pixels
    return PictureDemand(name, max(0, one - int(slope * pixels)), slope, 2 * pixels, 2 * rows * pixels, beside)


def refining(network: LatentNetwork, encoded: Encoded, slots: Sequence[int], count: int) -> list[LatentMove]:
    """Rows that change nothing, of pictures that nobody asked for."""
    width, height = network.sizes.default
    row = LatentRow(0, 0.5, 0.5, (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 1.0, False, 0, start=(0.0, 1.0))
    return [
        RefineMove(row, slot, 0, width, height, encoded, False, False)
        for slot in (slots[i % len(slots)] for i in range(count))
    ]


def _encoded(worker: LatentWorker, width: int, height: int) -> tuple[Encoded, int]:
    """Some condition, and the bytes that it takes to make one. A model that knows no empty text has classes by number."""
    found: list[Encoded] = []

    def encode() -> None:
        for text in ("", "0"):
            (outcome,) = worker.run([EncodeMove((text,), width, height)])
            found.extend([outcome] if isinstance(outcome, Encoded) else [])

    taken = peak(worker.device, encode)
    if not found:
        raise ModelError("its memory cannot be measured: it takes neither an empty text nor a class as a prompt")
    return found[0], taken
