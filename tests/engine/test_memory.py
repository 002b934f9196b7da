"""Memory as a cache: shared beginnings, growth, and requests that are set back. No network, no torch."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.lane import Limits
from service.engine.loop import Engine
from service.engine.messages import Finish, Submit, TextWork
from service.workers.block_pool import BlockPool
from tests.engine.deferred_device import DeferredDevice, deferred
from tests.engine.driving import Outputs, finish_all
from tests.engine.reading_worker import VOCABULARY, reading_engine


def prompt(length: int, family: int = 0) -> list[int]:
    """Prompts of a family begin alike."""
    rng = random.Random(family)
    return [rng.randrange(1, VOCABULARY) for _ in range(length)]


def ask(
    name: str, tokens: list[int], max_tokens: int, seed: int = 0, block_length: int = 0, priority: int = 0,
    deadline: float | None = None, arrived: float = 0.0,
) -> Submit:  # fmt: skip
    work = TextWork(tokens, max_tokens)
    procedure = "block_diffusion" if block_length else "autoregressive"
    parameters = {"block_length": block_length, "threshold": 0.7} if block_length else {}
    return Submit(name, "text", procedure, parameters, seed, work, arrived, priority, deadline)


@lru_cache(maxsize=100_000)
def tokens_alone(tokens: tuple[int, ...], max_tokens: int, seed: int, block_length: int) -> list[int]:
    engine = reading_engine(400, prefix_cache=False, limits=Limits(8, 10_000, 1))
    return finish_all(engine, [ask("alone", list(tokens), max_tokens, seed, block_length)]).tokens["alone"]


def alone(submit: Submit) -> list[int]:
    assert isinstance(submit.work, TextWork)
    work, block_length = submit.work, submit.parameters.get("block_length", 0)
    return tokens_alone(tuple(work.prompt), work.max_tokens, submit.seed, block_length)


def preemptions(engine: Engine) -> int:
    return engine.gauges().preemptions["text"]


def test_requests_that_begin_alike_and_arrive_together_compute_the_beginning_once() -> None:
    engine = reading_engine(400, block_size=4)
    requests = [ask(f"r{i}", [*prompt(100), 1 + i % 6, 1 + i // 6, 3], 5, seed=i) for i in range(16)]
    outputs = finish_all(engine, requests)
    assert all(outputs.tokens[request.id] == alone(request) for request in requests)
    usages = [outputs.done[request.id].usage for request in requests]
    assert usages[0].cached_tokens == 0
    assert all(100 <= usage.cached_tokens <= 102 for usage in usages[1:])
    assert sum(tick.prompt_tokens for tick in outputs.ticks) == 103 + sum(103 - usage.cached_tokens for usage in usages[1:])
    assert sum(tick.cached_tokens for tick in outputs.ticks) == sum(usage.cached_tokens for usage in usages)


def test_without_the_prefix_cache_nothing_is_shared_or_kept() -> None:
    engine = reading_engine(400, prefix_cache=False)
    outputs = finish_all(engine, [ask(f"r{i}", prompt(50), 5) for i in range(4)])
    assert [done.usage.cached_tokens for done in outputs.done.values()] == [0] * 4
    assert engine.gauges().kv_blocks["text"] == (0, 0, 400)


def test_whoever_computes_for_others_may_leave_at_any_time() -> None:
    for leaving in range(1, 12):
        engine, outputs = reading_engine(400, limits=Limits(8, 16, 16)), Outputs()
        requests = [ask(f"r{i}", prompt(100), 4, seed=i) for i in range(5)]
        for request in requests:
            engine.take(request)
        for _ in range(leaving):
            outputs.take(engine.tick())
        outputs.take(engine.take(Finish("r0")))
        finish_all(engine, [], outputs)
        assert all(outputs.tokens[request.id] == alone(request) for request in requests[1:])
        # What the first had computed is not lost, and only one of the others went on where it had stopped.
        assert engine.models["text"].worker.computed < 100 + 16 + 5 * 8


def test_a_later_request_finds_what_an_ended_one_left() -> None:
    engine = reading_engine(100)
    finish_all(engine, [ask("first", prompt(41), 8)])
    used, cached, free = engine.gauges().kv_blocks["text"]
    assert (used, cached, free) == (0, (41 + 8 - 1) // 4, 100 - 12)
    again = finish_all(engine, [ask("again", prompt(41), 8)])
    assert again.done["again"].usage.cached_tokens == 40
    other = finish_all(engine, [ask("other", prompt(41, family=1), 8)])
    assert other.done["other"].usage.cached_tokens == 0


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    engine = reading_engine(100, block_size=4)
    first, second = (finish_all(engine, [ask(name, prompt(40), 3)]) for name in ("first", "second"))
    assert first.tokens["first"] == second.tokens["second"]
    assert second.done["second"].usage.cached_tokens == 36


def test_memory_that_was_unused_longest_is_forgotten_first_and_the_end_of_a_text_before_its_beginning() -> None:
    engine = reading_engine(30)
    for family in (1, 2):
        finish_all(engine, [ask("x", prompt(41, family), 1)])
    finish_all(engine, [ask("x", prompt(41, 1), 1)])  # 1 is now the fresher one; 20 blocks are cached, 10 free
    finish_all(engine, [ask("x", prompt(61, 3), 1)])  # takes 16: the free ones and 6 of 2's
    cached = [finish_all(engine, [ask("x", prompt(41, family), 1)]).done["x"].usage.cached_tokens for family in (1, 2)]
    assert cached == [40, 16]


def test_a_request_set_back_in_the_middle_goes_on_with_the_same_tokens() -> None:
    for block_length in (0, 4, 8):
        engine, outputs = reading_engine(13), Outputs()
        requests = [ask(f"r{i}", prompt(6, i), 30, seed=i, block_length=block_length) for i in range(3)]
        for request in requests:
            outputs.take(engine.take(request))
        while engine.has_work:
            outputs.take(engine.tick())
            engine.scheduler.check_books()
        assert preemptions(engine) > 0
        assert all(outputs.tokens[request.id] == alone(request) for request in requests)
        assert next(iter(outputs.done)) == "r0"  # the oldest is never set back
        for done in outputs.done.values():
            assert done.usage.prompt_tokens == 6 and done.usage.cached_tokens == 0
            assert 0 < done.usage.queue_seconds <= done.usage.first_output_seconds <= done.usage.total_seconds


def test_books_are_checked_once_when_the_engine_falls_idle_and_not_while_it_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, checked = reading_engine(30), list[int]()
    monkeypatch.setattr(BlockPool, "check_books", lambda pool, held: checked.append(len(held)))
    for count in (1, 2):
        finish_all(engine, [ask("x", prompt(20), 3)])
        for _ in range(5):
            engine.tick()
        assert checked == [0] * count


def test_the_lowest_priority_is_set_back_before_the_youngest() -> None:
    engine, outputs = reading_engine(12), Outputs()
    for name, priority in (("old and unimportant", 5), ("young", 0), ("youngest", 0)):
        outputs.take(engine.take(ask(name, prompt(6, len(name)), 24, priority=priority)))
    waiting: list[str] = []
    while engine.has_work and not waiting:
        outputs.take(engine.tick())
        waiting = [request.id for request in engine.scheduler.lanes["text"].waiting]
    assert waiting == ["old and unimportant"]
    finish_all(engine, [], outputs)
    assert len(outputs.done) == 3 and next(iter(outputs.done)) == "young"


def test_a_deadline_counts_until_the_start_and_not_for_one_that_is_set_back() -> None:
    engine = reading_engine(10)
    requests = [ask(f"r{i}", prompt(6, i), 30, deadline=0.1) for i in range(2)]
    outputs = finish_all(engine, [*requests, ask("late", prompt(36), 1, deadline=0.02)])
    assert preemptions(engine) > 0 and outputs.done.keys() == {"r0", "r1"}
    assert outputs.done["r1"].usage.total_seconds > 0.1
    assert outputs.failed["late"].status == 504


def test_what_a_failed_request_computed_is_not_shared() -> None:
    engine = reading_engine(100, limits=Limits(8, 16, 16), fails=lambda seed, start: seed == 7 and start >= 32)
    outputs = finish_all(engine, [ask("bad", prompt(50), 4, seed=7), ask("good", prompt(50), 4, seed=8)])
    assert outputs.failed.keys() == {"bad"} and outputs.tokens["good"] == alone(ask("good", prompt(50), 4, seed=8))
    engine = reading_engine(100, limits=Limits(8, 16, 16), fails=lambda seed, start: seed == 7 and start >= 32)
    finish_all(engine, [ask("bad", prompt(50), 4, seed=7)])
    assert engine.gauges().kv_blocks["text"] == (0, 0, 100)


def test_a_request_that_fits_alone_is_accepted_and_ends_however_tight_it_is() -> None:
    engine = reading_engine(10)
    outputs = finish_all(engine, [ask("tight", prompt(10), 30), ask("too large", prompt(10), 31), ask("other", prompt(39), 1)])
    assert outputs.done.keys() == {"tight", "other"} and outputs.failed["too large"].param == "max_tokens"
    assert outputs.tokens["tight"] == alone(ask("", prompt(10), 30))


@dataclass(frozen=True)
class Visit:
    """A request of the storm: when it comes and, perhaps, goes."""

    family: int
    length: int
    max_tokens: int
    block_length: int
    priority: int
    seed: int
    at: int
    leaves: int | None
    deadline: float | None


VISITS = st.lists(
    st.builds(
        Visit, st.integers(0, 2), st.integers(1, 40), st.integers(1, 25), st.sampled_from((0, 0, 4, 6)), st.integers(-1, 1),
        st.integers(0, 9), st.integers(0, 60), st.none() | st.integers(0, 120), st.none() | st.floats(0.0, 1.0),
    ),
    min_size=1, max_size=20,
)  # fmt: skip


def storm(visits: list[Visit], blocks: int, limits: Limits, fails: bool, overlap: bool = False) -> Engine:
    """Every request ends in one way, its tokens are those of the same request alone, and the books balance after each tick."""
    bad = {2, 3} if fails else set()
    engine = reading_engine(blocks, limits=limits, fails=lambda seed, start: seed in bad and start >= 9)
    device = DeferredDevice()
    if overlap:
        engine, device = deferred(engine, len(visits))
    outputs = Outputs()
    submits = [
        ask(f"r{i}", prompt(v.length, v.family), v.max_tokens, v.seed, v.block_length, v.priority, v.deadline, v.at / 1000)
        for i, v in enumerate(visits)
    ]
    cancelled: set[str] = set()
    turn, last = 0, max([v.at for v in visits] + [v.leaves or 0 for v in visits])
    while turn <= last or engine.has_work:
        for submit, visit in zip(submits, visits, strict=True):
            if visit.at == turn:
                outputs.take(engine.take(submit))
            if visit.leaves == turn and submit.id in engine.scheduler.requests:
                cancelled.add(submit.id)
                outputs.take(engine.take(Finish(submit.id)))
        outputs.take(engine.tick())
        engine.scheduler.check_books()
        turn += 1
        assert turn < 10_000, "it does not come to an end"
    assert len(outputs.done) + len(outputs.failed) == len(visits)
    for submit in submits:
        expected, got = alone(submit), outputs.tokens[submit.id]
        if submit.id in outputs.failed or submit.id in cancelled:
            assert got == expected[: len(got)]
        else:
            assert got == expected
            usage = outputs.done[submit.id].usage
            assert usage.generated_tokens == len(got) and usage.cached_tokens < usage.prompt_tokens
    assert engine.gauges().kv_blocks["text"][0] == 0 and not device.broken
    return engine


@settings(max_examples=60, deadline=None, derandomize=True)
@given(VISITS, st.integers(2, 24), st.sampled_from((Limits(1, 5, 3), Limits(4, 16, 8), Limits(8, 40, 20))), st.booleans())
def test_every_request_ends_with_its_own_tokens_in_any_storm(
    visits: list[Visit], blocks: int, limits: Limits, fails: bool
) -> None:  # fmt: skip
    storm(visits, blocks, limits, fails)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(VISITS, st.integers(2, 24), st.sampled_from((Limits(1, 5, 3), Limits(4, 16, 8), Limits(8, 40, 20))), st.booleans())
def test_every_request_ends_with_its_own_tokens_where_forwards_overlap(
    visits: list[Visit], blocks: int, limits: Limits, fails: bool
) -> None:  # fmt: skip
    storm(visits, blocks, limits, fails, overlap=True)


@pytest.mark.parametrize("overlap", [False, True])
def test_large_storms_in_small_memory(overlap: bool) -> None:
    rng = random.Random(1)
    set_back = 0
    for _ in range(2):
        visits = [
            Visit(
                rng.randrange(4), rng.randrange(1, 40), rng.randrange(1, 40), rng.choice((0, 0, 4, 8)), rng.randrange(3),
                rng.randrange(10), rng.randrange(300), rng.choice((None, None, rng.randrange(600))), None,
            )
            for _ in range(150)
        ]  # fmt: skip
        set_back += preemptions(storm(visits, rng.randrange(20, 40), Limits(8, 32, 16), True, overlap))
    assert set_back > 50


def test_a_pool_keeps_what_is_released_until_it_is_needed() -> None:
    pool = BlockPool(4, 1)
    blocks = pool.allocate(3)
    for block in blocks:
        pool.publish(block, bytes([block]))
    pool.release(blocks)
    assert (pool.used, pool.cached, pool.free) == (0, 3, 1)
    pool.hold(blocks[2])
    fresh = pool.allocate(2)
    assert pool.find(bytes([blocks[1]])) is None and pool.find(bytes([blocks[0]])) == blocks[0]
    pool.check_books({blocks[2]: 1, fresh[0]: 1, fresh[1]: 1})
    with pytest.raises(AssertionError):
        pool.allocate(2)
    pool.release(fresh)
    with pytest.raises(AssertionError, match="twice"):
        pool.release(fresh)
