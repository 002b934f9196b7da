"""What a search buys: held-out captions that `shapes` draws correctly, by best-of-n and by particles, at the same evaluations.

    python -m tests.benchmarks.search --captions 200

Each caption is one request to an engine in this process, as the server makes them: one picture, or as many candidates or
particles of one sampler, judged by the checker `scene`. Prints a line a method with the share of captions whose picture is
correct, the mean score, evaluations a caption, and how many seconds forwards and scoring took.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.engine.assembly import build_engine
from service.engine.loop import Engine
from service.engine.messages import Done, ImageWork, Submit
from service.engine.reports import Tick
from service.engine.search_validation import checked_search
from service.engine.validation import procedure_parameters
from service.models.scorers import SCORERS
from service.settings import Settings
from service.training.scenes import draw_scenes

AT_ONCE = 32
SAMPLERS: tuple[dict[str, Any], ...] = ({"name": "flow_map", "steps": 4}, {"name": "consistency", "steps": 4})


def searches(sampler: str) -> Iterator[dict[str, Any] | None]:
    """One picture, then the methods by what they cost; particles where the sampler draws noise."""
    yield None
    for count in (2, 4, 8):
        yield {"method": "best_of", "candidates": count}
        if sampler != "flow_map" and count > 2:
            yield {"method": "particles", "particles": count}


@dataclass(frozen=True)
class Measured:
    sampler: str
    search: str
    captions: int
    correct: float
    score: float
    nfe: float
    forward_seconds: float
    score_seconds: float
    pictures_scored: int


def measure(engine: Engine, captions: list[str], sampler: dict[str, Any], search: dict[str, Any] | None) -> Measured:
    """All captions, `AT_ONCE` at a time."""
    card = engine.models["shapes"].card
    procedure, parameters = procedure_parameters(card, sampler)
    chosen = None if search is None else checked_search(card, {**search, "scorer": "scene"}, procedure, parameters, 1)
    pending = iter([
        Submit(caption, "shapes", procedure, parameters, 1000 * i, ImageWork(caption, 32, 32, search=chosen), time.monotonic())
        for i, caption in enumerate(captions)
    ])  # fmt: skip
    done: list[Done] = []
    seconds: defaultdict[bool, float] = defaultdict(float)
    submit = next(pending, None)
    while engine.has_work or submit is not None:
        while submit is not None and len(engine.scheduler.requests) < AT_ONCE:
            assert not engine.take(submit)
            submit = next(pending, None)
        for event in engine.tick():
            if isinstance(event, Done):
                done.append(event)
            elif isinstance(event, Tick):
                seconds[event.score_moves > 0] += event.forward_seconds
    scores = [_score(one) for one in done]
    assert len(scores) == len(captions)
    return Measured(
        " ".join(map(str, sampler.values())), "one picture" if search is None else " ".join(map(str, search.values())),
        len(captions), sum(score == 1.0 for score in scores) / len(scores), sum(scores) / len(scores),
        sum(one.usage.nfe or 0 for one in done) / len(done), seconds[False], seconds[True],
        sum(one.usage.scored or 0 for one in done),
    )  # fmt: skip


def _score(done: Done) -> float:
    """Of the picture that came of the caption, which is the request's id."""
    (one,) = done.each(1)
    return SCORERS["scene"].score(done.id, np.frombuffer(one.rgb, np.uint8).reshape(one.height, one.width, 3))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    engine = build_engine(Settings(models=["shapes"], threads=options.threads))
    captions = list({scene.caption: None for scene in draw_scenes((0, 1), options.captions, held_out=True).scenes})
    for sampler in SAMPLERS:
        for search in searches(sampler["name"]):
            print(json.dumps(vars(measure(engine, captions, sampler, search))), flush=True)


if __name__ == "__main__":
    main()
