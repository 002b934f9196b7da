"""The batch-invariant setting: exact, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from service.engine.loop import Engine
from service.engine.messages import Submit
from service.workers.unread import Unread
from tests.engine.driving import Outputs, engine_on, finish_all, one_of_every_kind, text_request


def logits_seen(engine: Engine) -> dict[int, list[torch.Tensor]]:
    """Records the logits that every request's tokens are drawn from, by seed."""
    worker: Any = engine.models["text"].worker
    read, seen = worker._reader.read, {}

    def recording(moves: list, logits: torch.Tensor) -> Unread:
        at = 0
        for move in moves:
            count = len(move.rows[-1].wanted)
            seen.setdefault(move.draws.seed, []).append(logits[at : at + count].clone())
            at += count
        return read(moves, logits)

    worker._reader.read = recording
    return seen


def _run(folder: Path, requests: list[Submit], **settings: Any) -> tuple[dict[int, list[torch.Tensor]], Outputs]:
    engine = engine_on(folder, batch_invariant=True, **settings)
    seen = logits_seen(engine)
    return seen, finish_all(engine, requests)


def test_logits_and_pixels_have_the_same_bits_alone_and_in_a_crowd(tmp_path: Path) -> None:
    requests = one_of_every_kind(18)
    crowd_logits, crowd = _run(tmp_path, requests)
    lone = engine_on(tmp_path, batch_invariant=True, prefix_cache=False)
    logits = logits_seen(lone)
    for request in requests:
        alone = finish_all(lone, [request])
        assert alone.done[request.id].rgb == crowd.done[request.id].rgb
        if request.model == "text":
            for mine, theirs in zip(logits[request.seed], crowd_logits[request.seed], strict=True):
                assert torch.equal(mine, theirs)


def test_chunked_prefill_gives_the_same_bits(tmp_path: Path) -> None:
    request = text_request("a", 4, prompt_length=75, max_tokens=8)
    whole, _ = _run(tmp_path, [request])
    chunked, _ = _run(tmp_path, [request], token_budget=13)
    last = [logits for logits in chunked[4] if len(logits)]
    for mine, theirs in zip(whole[4], last, strict=True):
        assert torch.equal(mine, theirs)
