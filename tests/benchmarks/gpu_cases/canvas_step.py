"""A step of canvases of 32 positions: read all logits, measure, draw, choose and set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from kernels.canvas_step import Rule, Selection, read, select
from kernels.token_sampling import Kinds
from tests.benchmarks.gpu_cases import Case, Run


def cases(device: torch.device, small: bool = False) -> Iterable[Case]:
    for canvases, length, vocabulary in ((2, 4, 150),) if small else ((1, 32, 151_936), (16, 32, 151_936), (32, 32, 32_000)):
        rows = canvases * length
        generator = torch.Generator(device).manual_seed(rows)
        logits = 2 * torch.randn(rows, vocabulary, generator=generator, device=device)
        selection = Selection(
            torch.full((canvases,), int(Rule.ENTROPY_BOUND), dtype=torch.int32, device=device),
            torch.full((canvases,), 5.0, dtype=torch.float64, device=device),
            torch.ones(canvases, dtype=torch.int32, device=device), torch.zeros(canvases, dtype=torch.bool, device=device),
        )  # fmt: skip
        name = f"canvas step, {canvases} of {length} x {vocabulary}"
        peers: dict[str, Run] = {"torch": partial(_greedy_by_torch, logits, canvases, length)}
        if not small:
            compiled = torch.compile(_greedy_by_torch)
            peers["torch.compile"] = partial(_named, compiled, logits, canvases, length)
        yield Case(name, "float32", partial(_ours, logits, canvases, length, selection), peers, bytes=4 * logits.numel())


def _ours(logits: Tensor, canvases: int, length: int, selection: Selection) -> Tensor:
    rows, device = canvases * length, logits.device
    fill = partial(torch.full, (rows,), device=device)
    zero, one = fill(0), fill(1.0)
    everything = torch.arange(rows, device=device)
    greedy = Kinds(drawn=False)
    readings = read(logits, fill(0.0), zero, one, fill(0.0), zero, zero, 1, everything, one, kinds=greedy)
    canvas = torch.full((canvases, length), -1, device=device)
    select(canvas, everything.view(canvases, length), readings, selection)
    return canvas


def _named(compiled: Callable[..., Tensor], *arguments: object) -> Tensor:
    return compiled(*arguments)


def _greedy_by_torch(logits: Tensor, canvases: int, length: int) -> Tensor:
    """The same for one rule alone, in the operations that a plain implementation uses."""
    logprobs = torch.log_softmax(logits, -1)
    entropy = torch.special.entr(logprobs.exp()).sum(-1).view(canvases, length).double()
    token = logits.argmax(-1).view(canvases, length)
    ordered, order = entropy.sort(dim=-1, stable=True)
    place = torch.arange(length, device=logits.device)
    keep = (ordered.cumsum(-1) - ordered <= 5.0) | (place < 1)
    chosen = torch.zeros_like(keep).scatter(1, order, keep)
    return torch.where(chosen, token, -1)
