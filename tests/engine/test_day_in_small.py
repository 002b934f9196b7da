"""A day's worth of requests in small: random in everything, in a cache too small for them, cancelled at random, and each
result that of the same request alone.

The server is batch-invariant. Otherwise a sum's rounding depends on how many rows a forward has, which over some ten
thousand drawn tokens can turn one, and a comparison of so many could not be exact.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from service.engine.assembly import build_engine
from service.engine.loop import Engine
from service.engine.messages import Finish, Sampling, Submit, TextWork
from service.settings import Settings
from tests.checkpoints import write_decoder
from tests.engine.driving import Outputs, finish_all
from tests.few import few

FAMILIES = 3
PAGE_BYTES = 4096


def small_engine(folder: Path, **changes: object) -> Engine:
    """A cache of 512 positions for up to 64 requests of up to 210 each."""
    if not folder.exists():
        write_decoder(folder, window=None, head_dim=64)
    settings = {"models": [f"text={folder}"], "threads": 1, "kv_memory": 1 << 20, "batch_invariant": True, "kv_block": 4}
    return build_engine(Settings.model_validate(settings | changes))


def any_request(name: str, rng: random.Random) -> Submit:
    """Prompts of a family begin alike, for a while."""
    family = random.Random(rng.randrange(FAMILIES))
    shared, own = rng.choice((0, 20, 64)), rng.randrange(1, 50)
    prompt = [family.randrange(32, 127) for _ in range(shared)] + [rng.randrange(32, 127) for _ in range(own)]
    sampling = rng.choice(
        (
            Sampling(temperature=0.0),
            Sampling(temperature=rng.uniform(0.3, 1.5)),
            Sampling(temperature=1.0, top_k=rng.randrange(1, 40)),
            Sampling(temperature=1.0, top_p=0.8, min_p=0.02),
            Sampling(temperature=0.7, repetition_penalty=1.2),
        )
    )
    procedure, parameters = rng.choice(
        (
            ("autoregressive", {}),
            ("block_diffusion", {"block_length": rng.choice((4, 8, 16)), "threshold": 0.3}),
            ("block_diffusion", {"rule": "confidence", "block_length": 16, "steps": 3}),
        )
    )
    stops = rng.sample(range(32, 127), rng.choice((0, 0, 2)))
    work = TextWork(prompt, rng.choice((8, 40, rng.randrange(1, 80))), sampling, stops, min_tokens=rng.choice((0, 5)))
    now = time.monotonic()
    deadline = now + 0.05 if rng.random() < 0.03 else None
    return Submit(name, "text", procedure, parameters, rng.randrange(2**31), work, now, rng.choice((0, 0, 0, 1, -1)), deadline)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def live_through(engine: Engine, count: int, outputs: Outputs) -> tuple[list[Submit], set[str], int]:
    """Requests in waves, some cancelled wherever they are; what was asked, what cancelled, and bytes grown since half time."""
    rng = random.Random(count)
    submits: list[Submit] = []
    cancelled: set[str] = set()
    at_half = 0
    while len(submits) < count or engine.has_work:
        waiting = len(engine.scheduler.lanes["text"].waiting)
        for _ in range(min(count - len(submits), rng.choice((0, 0, 0, 1, 2, 60)) if waiting < 100 else 0)):
            submits.append(any_request(f"r{len(submits)}", rng))
            outputs.take(engine.take(submits[-1]))
        if engine.scheduler.requests and rng.random() < 0.04:
            victim = rng.choice(list(engine.scheduler.requests))
            cancelled.add(victim)
            outputs.take(engine.take(Finish(victim)))
        outputs.take(engine.tick())
        engine.scheduler.check_books()
        outputs.ticks.clear()
        if len(submits) >= count // 2 and not at_half:
            at_half = resident_bytes()
    return submits, cancelled, resident_bytes() - at_half


def a_day(folder: Path, count: int) -> int:
    engine, outputs = small_engine(folder), Outputs()
    submits, cancelled, grown = live_through(engine, count, outputs)
    gauges = engine.gauges()
    assert gauges.kv_blocks["text"][0] == 0 and gauges.running["text"] == gauges.waiting["text"] == 0
    assert gauges.preemptions["text"] > count // 50
    assert len(cancelled) > count // 20
    assert outputs.done.keys() | outputs.failed.keys() == {submit.id for submit in submits}
    assert all(failure.status == 504 for failure in outputs.failed.values())
    assert sum(done.usage.cached_tokens for done in outputs.done.values()) > count * 5
    quiet = small_engine(folder, prefix_cache=False)
    for submit in submits:
        if submit.id in outputs.done:
            alone = Submit(submit.id, "text", submit.procedure, submit.parameters, submit.seed, submit.work, submit.arrived)
            expected, got = finish_all(quiet, [alone]).tokens[submit.id], outputs.tokens[submit.id]
            assert got == (expected[: len(got)] if submit.id in cancelled else expected), submit
    return grown


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", few([24, 80], 24))
def test_requests_in_too_little_memory_get_what_each_would_alone(tmp_path: Path, count: int) -> None:
    a_day(tmp_path / "text", count)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_2000_requests_in_too_little_memory_get_what_each_would_alone_and_memory_stays_flat(tmp_path: Path) -> None:
    assert a_day(tmp_path / "text", 2000) < 8 << 20
