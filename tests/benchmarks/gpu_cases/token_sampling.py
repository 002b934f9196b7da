"""Drawing a token for every row of a batch: what each way reads is the logits once, at least."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.token_sampling import Kinds, draw_tokens, reference
from tests.benchmarks.gpu_cases import Case, Run

FREE = Kinds(top_k=False, top_p=False, min_p=False)


def cases(device: torch.device, small: bool = False) -> Iterable[Case]:
    for rows, vocabulary in ((2, 300),) if small else ((1, 151_936), (64, 151_936), (256, 151_936), (256, 32_000)):
        generator = torch.Generator(device).manual_seed(rows)
        logits = 2 * torch.randn(rows, vocabulary, generator=generator, device=device)
        columns = partial(_columns, rows, device)
        peers: dict[str, dict[str, Run]] = {
            "greedy": {"torch.argmax": partial(_greedy, logits)},
            "free": {"torch.multinomial": partial(_multinomial, logits)} | _flashinfer(logits, 0, 1.0),
            "top-k 50": _filtered(logits, 50, 1.0),
            "top-p 0.95": _filtered(logits, 0, 0.95),
            "top-k 50, top-p 0.95": _filtered(logits, 50, 0.95),
        }
        for name, (how, kinds) in {
            "greedy": (columns(0.0, 0, 1.0), Kinds(drawn=False)),
            "free": (columns(1.0, 0, 1.0), FREE),
            "top-k 50": (columns(1.0, 50, 1.0), Kinds(top_p=False)),
            "top-p 0.95": (columns(1.0, 0, 0.95), Kinds(top_k=False)),
            "top-k 50, top-p 0.95": (columns(1.0, 50, 0.95), Kinds()),
        }.items():
            yield Case(
                f"token sampling, {name}, {rows} x {vocabulary}", "float32", partial(_ours, logits, how, kinds),
                {"the reference": partial(_reference, logits, how)} if small else peers[name],
                bytes=4 * logits.numel(),
            )  # fmt: skip


def _columns(rows: int, device: torch.device, temperature: float, top_k: int, top_p: float) -> tuple[Any, ...]:
    fill = partial(torch.full, (rows,), device=device)
    seeds = torch.arange(rows, device=device)
    return fill(temperature), fill(top_k), fill(top_p), fill(0.0), seeds, seeds, 1


def _ours(logits: Tensor, how: tuple[Any, ...], kinds: Kinds) -> tuple[Tensor, ...]:
    return draw_tokens(logits, *how, kinds=kinds)


def _reference(logits: Tensor, how: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return reference.draw_tokens(logits, *how)


def _greedy(logits: Tensor) -> None:
    logits.argmax(-1)


def _multinomial(logits: Tensor) -> None:
    torch.multinomial(torch.softmax(logits, -1), 1)


def _filtered(logits: Tensor, top_k: int, top_p: float) -> dict[str, Run]:
    """As most services that run on torch do it, and FlashInfer's."""
    return {"torch, sorted": partial(_by_sorting, logits, top_k, top_p)} | _flashinfer(logits, top_k, top_p)


def _by_sorting(logits: Tensor, top_k: int, top_p: float) -> None:
    ordered, tokens = logits.topk(top_k) if top_k else logits.sort(descending=True)
    p = torch.softmax(ordered, -1)
    if top_p < 1.0:
        p = p.where(p.cumsum(-1) - p < top_p, 0.0)
    tokens.gather(1, torch.multinomial(p, 1))


def _flashinfer(logits: Tensor, top_k: int, top_p: float) -> dict[str, Run]:
    """FlashInfer's sampling without a sort, where it is installed; its tokens are its own generator's."""
    try:
        from flashinfer import sampling
    except ImportError:
        return {}

    def draw() -> None:
        p = torch.softmax(logits, -1)
        if top_k and top_p < 1.0:
            sampling.top_k_top_p_sampling_from_probs(p, top_k, top_p)
        elif top_k:
            sampling.top_k_sampling_from_probs(p, top_k)
        elif top_p < 1.0:
            sampling.top_p_sampling_from_probs(p, top_p)
        else:
            sampling.sampling_from_probs(p)

    return {"FlashInfer": draw}
