"""One forward is really shared, whatever sampler, step count and guidance each request asked for."""

from __future__ import annotations

import random
from pathlib import Path

from service.engine.messages import Submit, Tick
from tests.engine.driving import Outputs, engine_on, finish_all, image_request, text_request, unhurried

SAMPLERS = ("euler", "heun", "ddim", "dpmpp_2m")


def _mixed_images(count: int, rng: random.Random) -> list[Submit]:
    return [
        image_request(f"i{i}", i, SAMPLERS[i % 4], rng.choice((10, 14, 20, 28)), rng.choice((1.0, 2.5, 5.0)))
        for i in range(count)
    ]


def test_sixteen_mixed_image_requests_at_random_times_fill_forwards(tmp_path: Path) -> None:
    rng = random.Random(7)
    engine, outputs = unhurried(engine_on(tmp_path)), Outputs()
    arrivals = {rng.randrange(12): [] for _ in range(12)}
    for request in _mixed_images(16, rng):
        arrivals[rng.choice(sorted(arrivals))].append(request)
    for turn in range(12):
        for request in arrivals.get(turn, ()):
            outputs.take(engine.take(request))
        outputs.take(engine.tick())
    finish_all(engine, [], outputs)
    rows = [tick.rows for tick in outputs.ticks]
    assert len(outputs.done) == 16
    assert sum(rows) / len(rows) >= 6


def test_a_token_stream_keeps_flowing_between_image_forwards(tmp_path: Path) -> None:
    engine, outputs = engine_on(tmp_path), Outputs()
    outputs.take(engine.take(text_request("stream", 1, max_tokens=60)))
    for request in _mixed_images(12, random.Random(1)):
        outputs.take(engine.take(request))
    ticks: list[Tick] = []
    while "stream" not in outputs.done:
        before = len(outputs.ticks)
        outputs.take(engine.tick())
        ticks += outputs.ticks[before:]
    text_seconds = sum(t.forward_seconds for t in ticks if t.model == "text")
    image_seconds = sum(t.forward_seconds for t in ticks if t.model == "image")
    longest = max(t.forward_seconds for t in ticks)
    assert any(t.model == "image" for t in ticks)
    # Equal shares of measured device time, to within one forward of either.
    assert abs(text_seconds - image_seconds) <= 2 * longest or image_seconds < text_seconds
