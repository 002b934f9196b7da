"""Deadlines under a load that doubles, with elastic steps and without: `python -m tests.benchmarks.deadlines`.

A server with `shapes`, in a process of its own. First its capacity is measured: pictures a second at the best measured
quality, with as many under way as keep it busy, and the time of one picture alone. Then requests arrive as a Poisson process,
at a share of the capacity and from the middle on at twice that, open loop: nobody waits for an answer before asking. All have
the same deadline, some times what one picture takes alone. In one arm they ask for the procedure and steps that have the best
quality; in the other for the quality `best`, and the service chooses procedure and steps by the deadline. Both have the same
captions, seeds and arrival times, in turns.

Where the machine is quiet only for short times: `--turns 0` measures the capacity, `--capacity`, `--alone`, `--first-turn` and
`--arms` run a part with it, `--json` keeps what was measured, and `--report` makes table and picture of such files.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import torch
from PIL import Image

from service.bench.report import percentile
from service.engine.choosing import Quality
from service.models.scene_checker import check_scene
from service.models.scenes import Scene
from service.training.scenes import draw_scenes
from tests.http.server import Server

ARMS = ("fixed", "elastic")
AT_ONCE = 16
"""Pictures under way that keep the server busy."""


@dataclass(frozen=True)
class Load:
    """`rate` requests a second for half of the time, twice as many for the rest; `deadline` seconds each."""

    rate: float
    seconds: float
    deadline: float


@dataclass(frozen=True)
class Arrival:
    """At so many seconds after the start; `doubled` in the second half."""

    at: float
    doubled: bool
    scene: Scene
    seed: int


@dataclass(frozen=True)
class Answer:
    """What came of a request that arrived `at` so many seconds; `seconds` until it was answered. `nfe` and `correct` are None
    without a picture."""

    arm: str
    at: float
    doubled: bool
    seconds: float
    nfe: int | None = None
    correct: bool | None = None
    cut: bool = False


def arrivals(load: Load, seed: int) -> list[Arrival]:
    """A Poisson process of either rate in its half."""
    draw, times = random.Random(seed), []
    for half in (0, 1):
        at = half * load.seconds / 2
        while (at := at + draw.expovariate(load.rate * (1 + half))) < (half + 1) * load.seconds / 2:
            times.append((at, bool(half)))
    scenes = draw_scenes((seed, 41), max(1, len(times)), held_out=True).scenes
    return [Arrival(at, doubled, scene, draw.randrange(2**31)) for (at, doubled), scene in zip(times, scenes, strict=False)]


def procedure_of(url: str, quality: Quality) -> dict[str, Any]:
    """The procedure that the service takes for this quality, with all of its parameters."""
    body = {"model": "shapes", "prompt": "a small red circle", "quality": quality}
    answer = httpx.post(url + "/v1/generate", json=body, timeout=60).raise_for_status().json()
    return dict(answer["procedure"])


async def calibrate(url: str, procedure: dict[str, Any], count: int, at_once: int) -> tuple[float, float]:
    """Pictures a second with `at_once` under way, and the median seconds of one alone."""
    body = {"model": "shapes", "prompt": "a large blue square above a small red circle", "procedure": procedure}
    async with _client(url) as client:

        async def one() -> float:
            began = time.monotonic()
            (await client.post("/v1/generate", json=body)).raise_for_status()
            return time.monotonic() - began

        alone = [await one() for _ in range(5)]
        slots, began = asyncio.Semaphore(at_once), time.monotonic()

        async def slotted() -> None:
            async with slots:
                await one()

        await asyncio.gather(*(slotted() for _ in range(count)))
        return count / (time.monotonic() - began), percentile(alone, 0.5)


async def drive(url: str, plan: Sequence[Arrival], deadline: float, arm: str, asked: dict[str, Any]) -> list[Answer]:
    """Every request at its time, with what is `asked` in this arm; those answered late or refused count as they are."""
    async with _client(url) as client:
        began = time.monotonic()

        async def one(arrival: Arrival) -> tuple[Answer, Scene, dict[str, Any]]:
            body = {"model": "shapes", "prompt": arrival.scene.caption, "seed": arrival.seed, "deadline_ms": 1000 * deadline}
            await asyncio.sleep(began + arrival.at - time.monotonic())
            response = await client.post("/v1/generate", json=body | asked)
            seconds = time.monotonic() - began - arrival.at
            assert response.status_code in (200, 504), response.text
            return Answer(arm, arrival.at, arrival.doubled, seconds), arrival.scene, response.json()

        answers = await asyncio.gather(*(one(arrival) for arrival in plan))
    return [_judged(*answer) for answer in answers]  # now that the server does not need the processors


def _client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=120, limits=limits)


def _judged(answer: Answer, scene: Scene, body: dict[str, Any]) -> Answer:
    if "outputs" not in body:
        return answer
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["outputs"][0]["image"]))).convert("RGB"))
    picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1.0
    correct = check_scene(picture, scene).correct
    return replace(answer, nfe=body["usage"]["nfe"], correct=correct, cut="stopped_after" in body["procedure"])


def table(answers: Sequence[Answer], deadline: float) -> list[str]:
    """A line an arm and half, in Markdown."""
    lines = [
        "| load | steps | requests | within the deadline | p50 s | p99 s | mean evaluations | correct | other procedure |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for doubled in (False, True):
        for arm in ARMS:
            some = [a for a in answers if a.arm == arm and a.doubled == doubled]
            if some:
                lines.append(f"| {'doubled' if doubled else 'base'} | {arm} | {_figures(some, deadline)} |")
    return lines


def _figures(answers: Sequence[Answer], deadline: float) -> str:
    seconds = [a.seconds for a in answers]
    drawn = [a for a in answers if a.nfe is not None]
    met = sum(a.nfe is not None and a.seconds <= deadline for a in answers) / len(answers)
    nfe = np.mean([a.nfe for a in drawn]) if drawn else float("nan")
    correct = np.mean([bool(a.correct) for a in drawn]) if drawn else float("nan")
    return (
        f"{len(answers)} | {met:.1%} | {percentile(seconds, 0.5):.2f} | {percentile(seconds, 0.99):.2f} | {nfe:.1f} | "
        f"{correct:.1%} | {sum(a.cut for a in answers)}"
    )


def picture(answers: Sequence[Answer], load: Load, path: Path) -> None:
    """Latency and evaluations of every request over the time of its arrival."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 6), sharex=True, constrained_layout=True)
    for arm, colour in zip(ARMS, ("tab:gray", "tab:blue"), strict=True):
        some = [a for a in answers if a.arm == arm]
        at = [a.at for a in some]
        above.plot(at, [a.seconds for a in some], ".", color=colour, alpha=0.6, label=f"{arm} steps")
        below.plot(at, [a.nfe or float("nan") for a in some], ".", color=colour, alpha=0.6)
    above.axhline(load.deadline, color="tab:red", linestyle="--", label="deadline")
    for axes in (above, below):
        axes.axvline(load.seconds / 2, color="black", linewidth=0.8)
    above.set_yscale("log")
    below.set_ylim(bottom=0)
    above.set_ylabel("seconds until answered")
    above.legend(loc="upper left")
    below.set_ylabel("network evaluations")
    below.set_xlabel("arrival in seconds; the load doubles at the line")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


@dataclass(frozen=True)
class Measured:
    """A capacity in pictures a second, the seconds of one picture alone, and the answers under a load made of them."""

    capacity: float
    alone: float
    load: Load
    answers: list[Answer]

    def describe(self) -> str:
        load = self.load
        return (
            f"capacity {self.capacity:.2f}/s at that quality, one alone {self.alone:.3f} s; {load.rate:.2f}/s, then "
            f"{2 * load.rate:.2f}/s, deadline {load.deadline:.2f} s"
        )


@dataclass(frozen=True)
class Plan:
    """What to measure: the base load as a `share` of the capacity, the deadline as so many `times` one picture's time alone,
    `seconds` of each arm in each of the `turns`. `known` is a capacity and a time alone that were measured before."""

    seconds: float
    share: float
    times: float
    turns: Sequence[int]
    arms: Sequence[str] = ARMS
    calibration: int = 40
    known: tuple[float, float] | None = None
    quality: Quality = "best"


def measure(plan: Plan) -> Measured:
    """All arms in turns, their order changing."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "log", "--model", "shapes", "--threads", "0", ready_seconds=180.0)
        try:
            procedure = procedure_of(server.url, plan.quality)
            print(f"{plan.quality}: {procedure}", flush=True)
            asked: dict[str, dict[str, Any]] = {"fixed": {"procedure": procedure}, "elastic": {"quality": plan.quality}}
            capacity, alone = plan.known or asyncio.run(calibrate(server.url, procedure, plan.calibration, AT_ONCE))
            measured = Measured(capacity, alone, Load(plan.share * capacity, plan.seconds, plan.times * alone), [])
            print(measured.describe(), flush=True)
            for turn in plan.turns:
                for arm in plan.arms if turn % 2 == 0 else reversed(plan.arms):
                    some = arrivals(measured.load, turn)
                    measured.answers.extend(asyncio.run(drive(server.url, some, measured.load.deadline, arm, asked[arm])))
            return measured
        finally:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of one arm in one turn, half of them at twice the load")
    parser.add_argument("--share", type=float, default=0.6, help="of the capacity at the best quality, before the load doubles")
    parser.add_argument("--deadline", type=float, default=3.0, help="as a multiple of what one picture takes alone")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--first-turn", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--calibration", type=int, default=40, help="pictures that the capacity is measured by")
    parser.add_argument("--capacity", type=float, help="pictures a second, as measured before; needs --alone")
    parser.add_argument("--alone", type=float, help="seconds of one picture, as measured before")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--report", type=Path, nargs="+", help="files of --json, instead of measuring")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    if args.report:
        parts = [msgspec.json.decode(file.read_bytes(), type=Measured) for file in args.report]
        measured = replace(parts[0], answers=[answer for part in parts for answer in part.answers])
        print(measured.describe())
    else:
        known = None if args.capacity is None else (args.capacity, args.alone)
        turns = range(args.first_turn, args.first_turn + args.turns)
        measured = measure(Plan(args.seconds, args.share, args.deadline, turns, args.arms, args.calibration, known))
    if args.json:
        args.json.write_bytes(msgspec.json.encode(measured))
    print("\n".join(table(measured.answers, measured.load.deadline)))
    if args.picture:
        picture(measured.answers, measured.load, args.picture)


if __name__ == "__main__":
    main()
