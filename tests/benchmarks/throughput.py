"""Stride over HTTP against the same networks one request after another, in one run: `python -m tests.benchmarks.throughput`.

Prints ratios to the peer, plain torch, at the thread count that suits it best: images against the peer in the served dtype
and in float32, and against this server asked one by one. And the host's cost per token: the scheduler's from
`stride_scheduler_seconds`, the front end's as processor time of its process.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer

from kernels.philox import normal
from service.models.loading import ImageModel, ModelSpec, TextModel, load_model
from service.workers.purposes import INITIAL_NOISE
from tests.benchmarks.peers import decode, draw
from tests.http.server import Server

CAPTIONS = ("a large red circle", "a small blue square above a large green triangle on a white background")


@dataclass(frozen=True)
class ImageJob:
    arrives: float
    caption: str
    seed: int
    procedure: str
    parameters: dict[str, object]


def image_jobs(count: int, rng: random.Random, rate: float) -> list[ImageJob]:
    """Poisson arrivals; four samplers, three guidance scales, and steps for 10, 14, 20 or 28 evaluations (Heun: one less)."""
    jobs, clock = [], 0.0
    for i in range(count):
        clock += rng.expovariate(rate)
        procedure, evaluations = ("euler", "heun", "ddim", "dpmpp_2m")[i % 4], rng.choice((10, 14, 20, 28))
        steps = evaluations // 2 if procedure == "heun" else evaluations
        parameters = {"steps": steps, "guidance": rng.choice((1.0, 2.5, 5.0))}
        jobs.append(ImageJob(clock, CAPTIONS[i % 2], i, procedure, parameters))
    return jobs


def over_http(server: Server, bodies: list[dict[str, object]], arrivals: list[float]) -> float:
    """Seconds from the start until the last answer; every request in a thread of its own, at its arrival."""
    began = time.monotonic()

    def ask(body: dict[str, object], arrival: float) -> None:
        time.sleep(max(0.0, began + arrival - time.monotonic()))
        response = server.post("/v1/generate", body)
        assert response.status_code == 200, response.text

    with ThreadPoolExecutor(len(bodies)) as pool:
        list(pool.map(ask, bodies, arrivals))
    return time.monotonic() - began


def one_by_one(works: list[Callable[[], object]], arrivals: list[float]) -> float:
    """Seconds until the last is done, first come first served."""
    began = time.monotonic()
    for work, arrival in zip(works, arrivals, strict=True):
        time.sleep(max(0.0, began + arrival - time.monotonic()))
        work()
    return time.monotonic() - began


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fastest(works: list[Callable[[], object]], arrivals: list[float]) -> tuple[float, int]:
    """Seconds one by one with the thread count that suits the peer best, and that count."""
    seconds = {}
    processors = len(os.sched_getaffinity(0))
    for threads in sorted({processors, *(2**power for power in range(processors.bit_length()) if 2**power <= processors)}):
        torch.set_num_threads(threads)
        works[0]()
        seconds[threads] = one_by_one(works, arrivals)
    threads = min(seconds, key=lambda count: seconds[count])
    return seconds[threads], threads


@dataclass(frozen=True)
class Bench:
    """A server and, in this process, the networks that it serves."""

    server: Server
    text: TextModel
    images: dict[str, ImageModel]
    words: Tokenizer

    @classmethod
    def start(cls, log: Path) -> Bench:
        cpu = torch.device("cpu")
        text = load_model(ModelSpec.parse("shakespeare"), cpu)
        assert isinstance(text, TextModel)
        text.network.fuse()
        images = {}
        for spec in ("shapes", "shapes,dtype=float32"):
            image = load_model(ModelSpec.parse(spec), cpu)
            assert isinstance(image, ImageModel)
            images.setdefault(str(next(image.network.parameters()).dtype).removeprefix("torch."), image)
            folder = image.spec.folder
        return cls(Server(log, "--threads", "0"), text, images, Tokenizer.from_file(str(folder / "tokenizer.json")))

    def images_at_random(self, count: int, turn: int) -> list[float]:
        """Pictures with mixed samplers, steps and guidance; the ratio to the peer in each dtype."""
        jobs = image_jobs(count, random.Random(turn), rate=100.0)
        arrivals = [job.arrives for job in jobs]
        bodies: list[dict[str, object]] = [
            {"model": "shapes", "prompt": j.caption, "seed": j.seed, "procedure": {"name": j.procedure, **j.parameters}}
            for j in jobs
        ]
        rows, forwards = self.server.metric("stride_batch_rows_sum"), self.server.metric("stride_batch_rows_count")
        ours = over_http(self.server, bodies, arrivals)
        rows = self.server.metric("stride_batch_rows_sum") - rows
        forwards = self.server.metric("stride_batch_rows_count") - forwards
        print(f"{count} images: {count / ours:.2f}/s, {rows / forwards:.1f} rows a forward")
        alone = one_by_one([partial(self.server.post, "/v1/generate", body) for body in bodies], arrivals)
        print(f"  one after another by this server, what batching gains: {count / alone:.2f}/s, ratio {alone / ours:.2f}")
        ratios = []
        for dtype, image in self.images.items():
            peer, threads = fastest([self._picture(image, job) for job in jobs], arrivals)
            ratios.append(peer / ours)
            print(f"  one after another, {dtype}, {threads} threads: {count / peer:.2f}/s, ratio {peer / ours:.2f}", flush=True)
        return ratios

    def _picture(self, image: ImageModel, job: ImageJob) -> Callable[[], object]:
        seed, side = torch.tensor([job.seed]), image.network.config.image_size
        noise = normal(seed, torch.zeros_like(seed), INITIAL_NOISE, 3 * side * side).view(1, 3, side, side)
        return lambda: draw(image.network, self.words.encode(job.caption).ids, job.procedure, job.parameters, noise)

    def texts_at_once(self, count: int, tokens: int, turn: int, streamed: bool) -> float:
        """Greedy continuations that all begin together; the ratio to the peer."""
        rng = random.Random(turn)
        prompts = [[rng.randrange(97, 123) for _ in range(32)] for _ in range(count)]
        bodies: list[dict[str, object]] = [
            {"model": "shakespeare", "input_tokens": p, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
            for p in prompts
        ]
        host = self.server.metric("stride_scheduler_seconds_sum", model="shakespeare")
        front = processor_seconds(self.server.process.pid)
        ours = over_http(self.server, [{**body, "stream": streamed} for body in bodies], [0.0] * count)
        front = processor_seconds(self.server.process.pid) - front
        host = self.server.metric("stride_scheduler_seconds_sum", model="shakespeare") - host
        works: list[Callable[[], object]] = [partial(decode, self.text.network, p, tokens) for p in prompts]
        peer, threads = fastest(works, [0.0] * count)
        total = count * tokens
        print(
            f"{count} texts, {'streamed' if streamed else 'whole'}: {total / ours:.0f} tokens/s; one after another, {threads} "
            f"threads: {total / peer:.0f}, ratio {peer / ours:.2f}; a token costs the scheduler {1e6 * host / total:.0f} µs, "
            f"the front end {1e6 * front / total:.0f} µs",
            flush=True,
        )
        return peer / ours


def measure(count: int, tokens: int, repeats: int) -> dict[str, list[float]]:
    """The ratios of every turn, by load."""
    ratios: dict[str, list[float]] = {"images": [], "texts, whole": [], "texts, streamed": []}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.start(Path(folder) / "log")
        try:
            for turn in range(repeats):
                ratios["images"].append(min(bench.images_at_random(count, turn)))
                for name, streamed in (("texts, whole", False), ("texts, streamed", True)):
                    ratios[name].append(bench.texts_at_once(count, tokens, turn, streamed))
        finally:
            bench.server.stop()
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=16, help="concurrent requests")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for name, ratios in measure(args.count, args.tokens, args.repeats).items():
        print(f"{name}: median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
