"""Drawing tokens on the CPU: see sampling.cpp."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kernels.cpu.library import library
from kernels.cpu.linear import pointer

TOKENS_A_THREAD = 8192


class _Drawing(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("logits", "temperature", "top_k", "top_p", "min_p", "seed", "number", "token", "confidence")
        ),
        ("rows", ctypes.c_int64),
        ("vocabulary", ctypes.c_int64),
        ("purpose", ctypes.c_int64),
    ]


def draw_tokens(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, numbers: Tensor,
    purpose: int, threads: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What `kernels.token_sampling.draw_tokens` says; `library()` must be there and the logits float32 on the CPU."""
    loaded = library()
    assert loaded is not None, "callers ask library() first"
    rows, vocabulary = logits.shape
    token, confidence = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    columns = (logits.contiguous(), temperature.float(), top_k, top_p.float(), min_p.float(), seeds, numbers)
    drawing = _Drawing(*map(pointer, (*columns, token, confidence)), rows, vocabulary, purpose)
    # A thread has to be worth waking: some microseconds, in which it draws from about so many tokens.
    worth = 1 + rows * vocabulary // TOKENS_A_THREAD
    loaded.stride_draw_tokens(ctypes.byref(drawing), ctypes.c_int(min(threads, rows, worth)))
    return token, confidence


class _Spread(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logits", "temperature", "entropy", "margin")),
        ("rows", ctypes.c_int64),
        ("vocabulary", ctypes.c_int64),
    ]


def spread(logits: Tensor, temperature: Tensor, threads: int) -> tuple[Tensor, Tensor]:
    """What `kernels.token_sampling.spread` says; `library()` must be there, both float32 on the CPU."""
    loaded = library()
    assert loaded is not None, "callers ask library() first"
    logits, temperature = logits.contiguous(), temperature.contiguous()
    entropy, margin = torch.empty(len(logits)), torch.empty(len(logits))
    columns = map(pointer, (logits, temperature, entropy, margin))
    loaded.stride_spread(ctypes.byref(_Spread(*columns, *logits.shape)), ctypes.c_int(threads))
    return entropy, margin
