"""Stride over HTTP against diffusers' pipelines, served first come first served and in fixed batches: one network in one
precision, the same requests at the same times. `python -m tests.benchmarks.pictures --picture FILE` prints a table; with
`--device cuda --dtype bfloat16` it is of a GPU.

First all requests come at once: what each contestant can do at most, and how often a second they come afterwards, in multiples
of what diffusers can do one by one. Figures are kept in `--json`, and what is there is not measured again.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from tests.benchmarks.picture_checkpoints import SHAPES, write_pipeline
from tests.benchmarks.picture_ideal import measure_ideal
from tests.benchmarks.picture_jobs import Drawn, Figures, Machine, PictureJob, figures, picture_jobs
from tests.benchmarks.picture_peers import WORDS, Peer
from tests.http.server import Server

STRIDE, FIRST_COME, BATCHES = "Stride over HTTP", "diffusers, one by one", "diffusers, fixed batches"
AT_ONCE = 0.0
"""The load at which all requests come at once."""
Serve = Callable[[Sequence[PictureJob]], list[Drawn]]


class Stride:
    """A server process, asked as clients ask."""

    def __init__(self, folder: Path, machine: Machine, log: Path) -> None:
        model = f"pictures={folder},dtype={machine.precision}"
        where = "--device", str(machine.device), "--threads", str(machine.threads)
        self._log = log
        self._server = Server(log, "--model", model, *where, ready_seconds=300)

    def serve(self, jobs: Sequence[PictureJob]) -> list[Drawn]:
        forwards, moves = (self._server.metric(f"stride_batch_rows_{kind}") for kind in ("count", "sum"))
        answers = asyncio.run(self._ask_all(jobs))
        forwards = self._server.metric("stride_batch_rows_count") - forwards
        moves = self._server.metric("stride_batch_rows_sum") - moves
        return [Drawn(finished, decoded(body), moves / forwards) for finished, body in answers]

    async def _ask_all(self, jobs: Sequence[PictureJob]) -> list[tuple[float, bytes]]:
        async with httpx.AsyncClient(base_url=self._server.url, timeout=600, limits=httpx.Limits(max_connections=None)) as http:
            began = time.perf_counter()
            return await asyncio.gather(*(self._ask(http, job, began) for job in jobs))

    async def _ask(self, http: httpx.AsyncClient, job: PictureJob, began: float) -> tuple[float, bytes]:
        procedure = {"name": job.sampler, "steps": job.steps, "guidance": job.guidance}
        body = {"model": "pictures", "prompt": job.prompt, "seed": job.seed, "procedure": procedure}
        if job.negative and job.guidance > 1.0:
            body["negative_prompt"] = job.negative
        await asyncio.sleep(began + job.arrives - time.perf_counter())
        response = await http.post("/v1/generate", json=body)
        assert response.status_code == 200, f"{response.text}\n{self._log.read_text()[-4000:]}"
        return time.perf_counter() - began, response.content

    def close(self) -> None:
        self._server.stop()


def decoded(body: bytes) -> np.ndarray:
    (output,) = json.loads(body)["outputs"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(output["image"]))).convert("RGB"))


@dataclass
class Result:
    """Of one network on one machine. `runs`: figures by load, then by contestant. `difference`: the largest mean difference, in
    levels of 255, of a picture of Stride's from diffusers' own."""

    network: str
    machine: str = ""
    ideal: float = 0.0
    row_ms: tuple[float, float] = (0.0, 0.0)
    difference: float = 0.0
    runs: dict[float, dict[str, Figures]] = field(default_factory=dict)

    @classmethod
    def read(cls, saved: dict[str, Any]) -> Result:
        runs = {float(load): {who: Figures(**each) for who, each in by.items()} for load, by in saved.pop("runs").items()}
        return cls(**saved, runs=runs)


@dataclass(frozen=True)
class Bench:
    """How much is asked for."""

    count: int
    loads: Sequence[float]
    machine: Machine
    batch: int = 8
    patience: float = 0.1
    words: int = WORDS
    pause: float = 0.0

    def measure(self, result: Result, folder: Path, log: Path, save: Callable[[], None] = lambda: None) -> None:
        """Adds what `result` lacks; `save` is called after every figure."""
        at_once = picture_jobs(self.count, 0.0, seed=1)
        if not result.ideal:
            ideal = measure_ideal(folder, self.machine, at_once)
            result.ideal, result.row_ms = ideal.images_per_second(at_once), (1e3 * ideal.alone, 1e3 * ideal.row)
            print(f"{result.network}: {ideal}", flush=True)
        stride, peer = Stride(folder, self.machine, log), Peer(folder, self.machine, self.words)
        contestants: dict[str, Serve] = {
            FIRST_COME: peer.serve,
            BATCHES: partial(peer.serve, batch=self.batch, patience=self.patience),
            STRIDE: stride.serve,
        }
        try:
            for name, serve in contestants.items():
                serve(picture_jobs(2, 0.0, seed=2, salt=name))
                # Kernels are compiled, chosen and loaded for the shapes that come, those of texts as long as the measured ones.
                for salt, count in (("a ", 1), ("b ", 4), ("c ", self.count)) if self.machine.is_gpu else ():
                    serve(picture_jobs(count, 0.0, seed=1, salt=salt))
            print(f"{result.network}: all are ready", flush=True)
            for load in (AT_ONCE, *self.loads):
                drawn = self._under(load, contestants, result, save)
                if {FIRST_COME, STRIDE} <= drawn.keys():
                    pairs = zip(drawn[FIRST_COME], drawn[STRIDE], strict=True)
                    worst = max(float(np.abs(a.picture.astype(int) - b.picture).mean()) for a, b in pairs)
                    result.difference = max(result.difference, worst)
                    save()
        finally:
            stride.close()
            peer.close()

    def _under(
        self, load: float, contestants: dict[str, Serve], result: Result, save: Callable[[], None]
    ) -> dict[str, list[Drawn]]:
        """What those drew whose figures under this load were missing."""
        runs = result.runs.setdefault(load, {})
        rate = load * result.runs[AT_ONCE][FIRST_COME].images_per_second if load else 0.0
        jobs = picture_jobs(self.count, rate, seed=1, salt=f"{load:g} ")
        drawn: dict[str, list[Drawn]] = {}
        for name, serve in contestants.items():
            if name in runs:
                continue
            time.sleep(self.pause)
            drawn[name] = serve(jobs)
            finished = [one.finished for one in drawn[name]]
            runs[name] = figures(jobs, finished, float(np.mean([one.together for one in drawn[name]])))
            print(row(result, load, name), flush=True)
            save()
        return drawn


HEAD = (
    "| pictures | requests | contestant | images/s | of ideal | mean s | p99 s | at once | ratio images/s | mean | p99 |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def row(result: Result, load: float, name: str) -> str:
    """A line of the table; ratios are to diffusers one by one, above 1 where the contestant is the better."""
    mine, base = result.runs[load][name], result.runs[load].get(FIRST_COME)
    ratios = ["", "", ""]
    if base is not None and name != FIRST_COME:
        gains = (mine.images_per_second / base.images_per_second, base.mean / mine.mean, base.p99 / mine.p99)
        ratios = [f"{gain:.2f}" for gain in gains]
    cells = [
        result.network, f"load {load:g}" if load else "all at once", name, f"{mine.images_per_second:.2f}",
        f"{100 * mine.images_per_second / result.ideal:.0f} %", f"{mine.mean:.2f}", f"{mine.p99:.2f}", f"{mine.together:.1f}",
        *ratios,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def draw(results: Sequence[Result], path: Path) -> None:
    """Images a second, mean and p99 latency over load, a row of panels for each network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(len(results), 3, figsize=(11, 3.2 * len(results)), squeeze=False)
    for line, result in zip(panels, results, strict=True):
        loads = [load for load in result.runs if load]
        for panel, (key, label) in zip(
            line, (("images_per_second", "images/s"), ("mean", "mean latency, s"), ("p99", "p99 latency, s")), strict=True
        ):
            for name in (FIRST_COME, BATCHES, STRIDE):
                panel.plot(loads, [getattr(result.runs[load][name], key) for load in loads], marker="o", markersize=4, label=name)
            panel.set(xlabel="load, 1 = what diffusers can do one by one", ylabel=label, title=result.network)
            panel.set_ylim(bottom=0.0)
        for name, at_once in result.runs[AT_ONCE].items():
            colour = next(each.get_color() for each in line[0].lines if each.get_label() == name)
            line[0].axhline(at_once.images_per_second, color=colour, linewidth=0.6, linestyle=":")
    panels[0][0].legend(fontsize=7)
    panels[0][0].set_title(f"{results[0].network}; dotted: all at once")
    figure.suptitle(results[0].machine, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=sorted(SHAPES), default=["256px", "64px"])
    parser.add_argument("--count", type=int, default=24, help="requests under each load")
    parser.add_argument("--loads", type=float, nargs="*", default=[0.5, 1.0, 2.0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="of all contestants, as torch calls it")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=8, help="of diffusers in fixed batches, at most")
    parser.add_argument("--patience", type=float, default=0.1, help="seconds that a request waits for others like it there")
    parser.add_argument("--words", type=int, default=WORDS, help="tokens to which diffusers pads texts")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds before every measurement")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    # With its number, by which all libraries know it: "cuda" is the first.
    machine = Machine(args.threads, torch.empty(0, device=args.device).device, getattr(torch, args.dtype))
    bench = Bench(args.count, args.loads, machine, args.batch, args.patience, args.words, args.pause)
    saved = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    results = {(each.network, each.machine): each for each in map(Result.read, saved)}

    def save() -> None:
        if args.json is not None:
            args.json.write_text(json.dumps([asdict(result) for result in results.values()], indent=1))

    with tempfile.TemporaryDirectory() as temporary:
        for name in args.networks:
            folder = write_pipeline(Path(temporary) / name, SHAPES[name], machine)
            result = results.setdefault((name, str(machine)), Result(name, str(machine)))
            bench.measure(result, folder, Path(temporary) / "log", save)
    chosen = [results[name, str(machine)] for name in args.networks]
    print(f"{machine}\n\n{HEAD}")
    print("\n".join(row(result, load, name) for result in chosen for load in result.runs for name in result.runs[load]))
    for result in chosen:
        alone, full = result.row_ms
        print(
            f"{result.network}, {result.machine}: an evaluation takes {alone:.1f} ms in a guided request alone and {full:.1f} ms "
            f"in full batches; ideal {result.ideal:.2f} images/s; pictures differ from diffusers' by {result.difference:.2f} "
            "levels of 255 at most"
        )
    if args.picture is not None:
        draw(chosen, args.picture)


if __name__ == "__main__":
    main()
