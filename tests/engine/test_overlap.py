"""Forwards that overlap: what comes out is what comes out one by one, and nothing is read or given away too early."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from service.engine.base_request import Flown
from service.engine.lane import Limits
from service.engine.loop import Engine
from service.engine.messages import Finish
from service.workers.types import RefineMove
from tests.engine.deferred_device import deferred
from tests.engine.driving import Outputs, engine_on, finish_all, image_request, one_of_every_kind, text_request
from tests.engine.reading_worker import reading_engine
from tests.engine.test_memory import alone, ask, prompt
from tests.engine.test_scheduler import scheduler, text
from tests.few import few

KINDS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("overlap")


@pytest.fixture(scope="module")
def one_by_one(folder: Path) -> Outputs:
    return finish_all(engine_on(folder, batch_invariant=True), one_of_every_kind(KINDS))


def overlapped(folder: Path, way: str, **settings: Any) -> Engine:
    engine = engine_on(folder, **settings)
    if way == "at once":
        return Engine(list(engine.models.values()), overlap=True)
    return deferred(engine, seed=1, threaded=way == "threads")[0]


WAYS = ("at once", "late", "threads")


@pytest.mark.parametrize("way", few(WAYS, "at once", "threads"))
def test_every_kind_of_request_gives_the_same_bits(folder: Path, one_by_one: Outputs, way: str) -> None:
    requests = one_of_every_kind(KINDS)
    outputs = finish_all(overlapped(folder, way, batch_invariant=True), requests)
    assert outputs.tokens == one_by_one.tokens and not outputs.failed
    for name, done in one_by_one.done.items():
        assert outputs.done[name].rgb == done.rgb
        for count in ("generated_tokens", "prompt_tokens", "nfe"):
            assert getattr(outputs.done[name].usage, count) == getattr(done.usage, count), (name, count)


def launches(engine: Engine, model: str) -> list[tuple[Sequence[Any], bool]]:
    """The moves of every launch from now on, and whether another forward was still to be collected."""
    seen: list[tuple[Sequence[Any], bool]] = []
    worker: Any = engine.models[model].worker
    launch = worker.launch

    def recording(moves: Sequence[Any]) -> Any:
        seen.append((moves, engine._flying is not None))
        return launch(moves)

    worker.launch = recording
    return seen


def test_a_text_alone_keeps_the_device_busy_and_computes_nothing_twice(folder: Path) -> None:
    request = text_request("x", 4, prompt_length=70, max_tokens=30)
    expected = finish_all(engine_on(folder, token_budget=32), [request])
    engine = overlapped(folder, "late", token_budget=32)
    seen = launches(engine, "text")
    outputs = finish_all(engine, [request])
    assert outputs.tokens == expected.tokens and outputs.done["x"].usage.forwards == expected.done["x"].usage.forwards
    assert len(seen) == 3 + 29, "chunks of the prompt, and no row behind the last token"
    assert [behind for _, behind in seen] == [False] + [True] * 31
    following = [move.follows for moves, _ in seen for move in moves]
    assert following == [None] * 3 + [0] * 29


def test_a_picture_alone_keeps_the_device_busy_until_there_is_something_to_show(folder: Path) -> None:
    engine = overlapped(folder, "late")
    seen = launches(engine, "image")
    finish_all(engine, [image_request("i", 1, "euler", 6)])
    behind = [behind for moves, behind in seen if isinstance(moves[0], RefineMove)]
    assert behind == [False] + [True] * 5


def test_a_text_that_ends_early_throws_one_row_away_and_says_nothing_of_it(folder: Path) -> None:
    free = finish_all(engine_on(folder), [text_request("x", 3, max_tokens=40)]).tokens["x"]
    at = free.index(free[10])
    requests = [text_request("x", 3, max_tokens=40, stop_token_ids=[free[10]])]
    expected, engine = finish_all(engine_on(folder), requests), overlapped(folder, "late")
    seen = launches(engine, "text")
    outputs = finish_all(engine, requests)
    assert outputs.tokens["x"] == free[:at] == expected.tokens["x"]
    assert outputs.done["x"].usage.forwards == expected.done["x"].usage.forwards == len(seen) - 1
    held = [text_request("x", 3, max_tokens=40, stop_token_ids=[free[10]], min_tokens=at + 5)]
    assert finish_all(overlapped(folder, "late"), held).tokens == finish_all(engine_on(folder), held).tokens


@pytest.mark.parametrize("way", few(WAYS, "late"))
def test_after_a_storm_of_cancels_the_books_balance(folder: Path, one_by_one: Outputs, way: str) -> None:
    rng = random.Random(3)
    engine, outputs, cancelled = overlapped(folder, way, max_running=6), Outputs(), set[str]()
    requests = one_of_every_kind(60)
    for request in requests:
        outputs.take(engine.take(request))
        for _ in range(rng.randrange(4)):
            outputs.take(engine.tick())
            engine.scheduler.check_books()
        if rng.random() < 0.5 and engine.scheduler.requests:
            victim = rng.choice(list(engine.scheduler.requests))
            outputs.take(engine.take(Finish(victim)))
            cancelled.add(victim)
            engine.scheduler.check_books()
    finish_all(engine, [], outputs)
    assert len(cancelled) > 15 and not outputs.failed
    assert set(outputs.done) == {request.id for request in requests}
    assert all(lane.pool.used == 0 and not lane.leaving for lane in engine.scheduler.lanes.values())
    for name in set(one_by_one.tokens) - cancelled:
        assert outputs.tokens[name] == one_by_one.tokens[name]


@pytest.mark.parametrize(
    "kind,when", few(itertools.product(("text", "image"), ("launched", "run")), ("text", "run"), ("image", "launched"))
)
def test_a_forward_that_fails_is_run_in_parts_and_ends_the_request_that_did_it_alone(
    folder: Path, one_by_one: Outputs, kind: str, when: str
) -> None:
    engine, _ = deferred(engine_on(folder, batch_invariant=True), seed=2)
    worker: Any = engine.models[kind].worker
    bad_seed = 3 if kind == "text" else 5

    def bad(moves: Sequence[Any]) -> bool:
        return any((move.draws.seed if kind == "text" else getattr(move, "seed", None)) == bad_seed for move in moves)

    launch = worker.launch

    def refusing(moves: Sequence[Any]) -> Any:
        if bad(moves):
            raise RuntimeError("illegal memory access")
        return launch(moves)

    if when == "launched":
        worker.launch = refusing
    else:
        worker.fails = bad
    requests = one_of_every_kind(KINDS)
    outputs = finish_all(engine, requests)
    failed = [request.id for request in requests if request.model == kind and request.seed == bad_seed]
    assert list(outputs.failed) == failed and "illegal memory access" in outputs.failed[failed[0]].message
    assert len(outputs.done) == KINDS - 1
    for name, done in outputs.done.items():
        assert outputs.tokens[name] == one_by_one.tokens[name] and done.rgb == one_by_one.done[name].rgb


def test_numbers_that_are_not_finite_leave_nothing_behind_for_others(folder: Path) -> None:
    engine = overlapped(folder, "late")
    worker: Any = engine.models["text"].worker
    poisoned, healthy = text_request("poisoned", 4, max_tokens=30), text_request("healthy", 7, max_tokens=30)
    outputs = Outputs()
    outputs.take(engine.take(poisoned))
    for _ in range(5):
        outputs.take(engine.tick())
    worker.cache.store[:, engine.scheduler.requests["poisoned"].table.blocks] = float("nan")
    finish_all(engine, [], outputs)
    assert "not finite" in outputs.failed["poisoned"].message
    assert bool(torch.isfinite(worker.cache.store).all())
    finish_all(engine, [healthy], outputs)
    assert outputs.tokens["healthy"] == finish_all(engine_on(folder), [healthy]).tokens["healthy"]


def test_requests_that_begin_alike_compute_the_beginning_once() -> None:
    engine, _ = deferred(reading_engine(400, block_size=4), seed=3)
    requests = [ask(f"r{i}", [*prompt(100), 1 + i % 6, 1 + i // 6, 3], 5, seed=i) for i in range(16)]
    outputs = finish_all(engine, requests)
    assert all(outputs.tokens[request.id] == alone(request) for request in requests)
    usages = [outputs.done[request.id].usage for request in requests]
    assert usages[0].cached_tokens == 0 and all(usage.cached_tokens >= 100 for usage in usages[1:])
    assert sum(tick.prompt_tokens for tick in outputs.ticks) == 103 + sum(103 - usage.cached_tokens for usage in usages[1:])


def test_what_a_chunk_that_fails_has_computed_is_not_shared_while_the_next_one_runs() -> None:
    limits = Limits(8, 16, 16)
    for seed in range(4):
        engine, _ = deferred(reading_engine(100, limits=limits, fails=lambda s, start: s == 7 and start >= 16), seed)
        outputs = finish_all(engine, [ask("bad", prompt(50), 4, seed=7), ask("good", prompt(50), 4, seed=8)])
        assert outputs.failed.keys() == {"bad"} and outputs.tokens["good"] == alone(ask("good", prompt(50), 4, seed=8))


def test_texts_that_must_wait_are_not_overtaken_for_ever_by_those_that_need_not(folder: Path) -> None:
    """One canvas among two texts that go ahead moves in every forward; among nine it moves in every second one at least."""
    for count, least in ((2, 1.0), (9, 0.5)):
        engine = overlapped(folder, "late", prefix_cache=False)
        seen = launches(engine, "text")
        steps = {"steps": 4, "rule": "confidence"}
        canvas = text_request("c", 1, "block_diffusion", prompt_length=8, max_tokens=32, parameters=steps)
        texts = [text_request(f"t{i}", 40 + i, prompt_length=8, max_tokens=200) for i in range(count)]
        for request in [canvas, *texts]:
            engine.take(request)
        outputs = Outputs()
        while "c" not in outputs.done:
            outputs.take(engine.tick())
        own = [any(move.draws.seed == 1 for move in moves) for moves, _ in seen]
        while not own[-1]:
            own.pop()
        assert sum(own) >= least * len(own) - 1


def test_who_ranks_first_gets_memory_when_what_was_launched_is_over() -> None:
    s = scheduler(blocks=4)
    first, last = text("first", prompt=15, max_tokens=30), text("last", arrived=1.0, prompt=15, max_tokens=30)
    s.add(first)
    s.add(last)
    batch = s.next_batch(0.0)
    assert batch is not None and len(batch.items) == 2
    for request in (first, last):
        request.table.blocks += s.lanes["text"].pool.allocate(1)
    s.launched(batch, [Flown(), Flown()])
    for request in (first, last):
        request.state.tokens += range(18)
        request.state.cached = 32
    assert s.next_batch(0.0) is None, "nobody is set back while a forward writes to its blocks, and nobody overtakes"
    s.landed(batch)
    again = s.next_batch(0.0)
    assert again is not None and [item.request.id for item in again.items] == ["first"]
    assert s.lanes["text"].preemptions == 1
    s.check_books()
