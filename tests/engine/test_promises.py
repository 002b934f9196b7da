"""Promises 1 and 6 of the design: a request's output is its own, and an ended request holds nothing."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from service.engine.messages import Finish, Submit
from service.workers.types import DeviceLost
from tests.engine.driving import Outputs, engine_on, finish_all, image_request, one_of_every_kind, text_request


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def _pixels(outputs: Outputs, name: str) -> np.ndarray:
    return np.frombuffer(outputs.done[name].rgb, np.uint8).astype(int)


def test_a_request_alone_and_among_others_of_every_kind_gives_the_same(folder: Path) -> None:
    requests = one_of_every_kind(20)
    crowd = finish_all(engine_on(folder), requests)
    assert len(crowd.done) == len(requests)
    for request in requests:
        alone = finish_all(engine_on(folder), [request])
        assert alone.tokens[request.id] == crowd.tokens[request.id]
        if request.model == "image":
            assert np.abs(_pixels(alone, request.id) - _pixels(crowd, request.id)).max() <= 1


@pytest.mark.parametrize("budget", [7, 16, 33])
def test_chunked_prefill_changes_no_token(folder: Path, budget: int) -> None:
    requests = [
        text_request("a", 4, prompt_length=120),
        text_request("b", 6, "block_diffusion", prompt_length=90, parameters={"block_length": 4}),
        text_request("c", 5, prompt_length=61),
    ]
    whole = finish_all(engine_on(folder), requests)
    chunked = finish_all(engine_on(folder, token_budget=budget), requests)
    assert whole.tokens == chunked.tokens and len(whole.tokens["b"]) == requests[1].work.max_tokens
    assert chunked.done["a"].usage.forwards > whole.done["a"].usage.forwards


def test_seeds_decide_sampled_text_and_pictures(folder: Path) -> None:
    def outputs(seed: int) -> tuple[list[int], bytes]:
        text = text_request("t", 1, max_tokens=30)
        image = image_request("i", 1)
        changed = [Submit(r.id, r.model, r.procedure, r.parameters, seed, r.work, 0.0) for r in (text, image)]
        out = finish_all(engine_on(folder), changed)
        return out.tokens["t"], out.done["i"].rgb

    assert outputs(5) == outputs(5)
    assert outputs(5)[0] != outputs(6)[0] and outputs(5)[1] != outputs(6)[1]


def test_after_a_storm_of_cancels_the_books_balance(folder: Path) -> None:
    rng = random.Random(0)
    engine = engine_on(folder, max_running=6)
    outputs = Outputs()
    requests = one_of_every_kind(120)
    cancelled = set()
    for request in requests:
        outputs.take(engine.take(request))
        for _ in range(rng.randrange(4)):
            outputs.take(engine.tick())
            engine.scheduler.check_books()
        if rng.random() < 0.6:
            outputs.take(engine.take(Finish(rng.choice(requests).id)))  # most often one that has ended, or not begun
        if rng.random() < 0.4 and engine.scheduler.requests:
            victim = rng.choice(list(engine.scheduler.requests))
            outputs.take(engine.take(Finish(victim)))
            cancelled.add(victim)
            assert outputs.done[victim].finish_reason == "cancelled"
            engine.scheduler.check_books()
    finish_all(engine, [], outputs)
    assert len(cancelled) > 20
    assert set(outputs.done) == {request.id for request in requests} and not outputs.failed
    assert all(lane.pool.used == 0 for lane in engine.scheduler.lanes.values())


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_row_whose_forward_fails_ends_that_request_alone(folder: Path, kind: str) -> None:
    engine = engine_on(folder)
    worker = engine.models[kind].worker
    run, bad_seed = worker.run, 3 if kind == "text" else 5

    def failing(moves: list) -> list:
        if any((move.draws.seed if kind == "text" else getattr(move, "seed", None)) == bad_seed for move in moves):
            raise RuntimeError("illegal memory access")
        return run(moves)

    worker.run = failing
    requests = one_of_every_kind(20)
    outputs = finish_all(engine, requests)
    bad = {request.id for request in requests if request.model == kind and request.seed == bad_seed}
    assert set(outputs.failed) == bad and len(bad) == 1
    assert "illegal memory access" in outputs.failed[bad.pop()].message
    assert len(outputs.done) == len(requests) - 1
    healthy = finish_all(engine_on(folder), requests)
    for name in outputs.done:
        assert outputs.tokens[name] == healthy.tokens[name]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_device_that_is_lost_ends_the_engine_and_is_no_fault_of_a_request(folder: Path, overlap: bool) -> None:
    engine = engine_on(folder, overlap=overlap)

    def lost(moves: list) -> list:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    engine.models["text"].worker.run = engine.models["text"].worker.launch = lost
    with pytest.raises(DeviceLost, match="illegal memory access"):
        finish_all(engine, [text_request("a", 1), text_request("b", 2)])


def test_a_request_whose_numbers_overflow_leaves_nothing_behind_for_others(folder: Path) -> None:
    engine = engine_on(folder)
    worker = engine.models["text"].worker
    poisoned, healthy = text_request("poisoned", 4, max_tokens=30), text_request("healthy", 7, max_tokens=30)
    outputs = Outputs()
    outputs.take(engine.take(poisoned))
    for _ in range(5):
        outputs.take(engine.tick())
    worker.cache.store[:, engine.scheduler.requests["poisoned"].table.blocks] = float("nan")
    finish_all(engine, [], outputs)
    assert "not finite" in outputs.failed["poisoned"].message
    finish_all(engine, [healthy], outputs)
    assert outputs.tokens["healthy"] == finish_all(engine_on(folder), [healthy]).tokens["healthy"]


def test_a_request_that_can_never_fit_is_refused_at_once(folder: Path) -> None:
    engine = engine_on(folder, kv_memory=1 << 20, kv_block=16)
    pool = engine.scheduler.lanes["text"].pool
    outputs = finish_all(engine, [text_request("huge", 1, max_tokens=pool.blocks * 16)])
    assert outputs.failed["huge"].status == 400 and outputs.failed["huge"].param == "max_tokens"
    assert len(finish_all(engine, [text_request("small", 1)]).done) == 1


def test_a_deadline_that_passes_in_the_queue_is_a_504(folder: Path) -> None:
    engine = engine_on(folder, max_running=1)
    first, late = text_request("first", 1, max_tokens=200), text_request("late", 2)
    late = Submit(late.id, late.model, late.procedure, late.parameters, late.seed, late.work, 0.0, deadline=1e-6)
    outputs = Outputs()
    outputs.take(engine.take(first))
    outputs.take(engine.tick())
    outputs = finish_all(engine, [late], outputs)
    assert outputs.failed["late"].status == 504 and outputs.done["first"].finish_reason == "length"
    assert engine.gauges().deadlines_missed == {"text": 1}


def test_stop_tokens_end_a_request_and_min_tokens_holds_them_back(folder: Path) -> None:
    free = finish_all(engine_on(folder), [text_request("x", 3, max_tokens=40)]).tokens["x"]
    stop = free[10]
    at = free.index(stop)
    outputs = finish_all(engine_on(folder), [text_request("x", 3, max_tokens=40, stop_token_ids=[stop])])
    assert outputs.tokens["x"] == free[:at] and outputs.done["x"].finish_reason == "stop"
    held = finish_all(engine_on(folder), [text_request("x", 3, max_tokens=40, stop_token_ids=[stop], min_tokens=at + 5)])
    assert len(held.tokens["x"]) >= at + 5 and stop not in held.tokens["x"][: at + 5]
