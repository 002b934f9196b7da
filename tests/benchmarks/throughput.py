"""Stride over HTTP against the same networks one request after another, in one run: `python -m tests.benchmarks.throughput`.

Prints ratios, and the host's cost per token: the scheduler's from `stride_scheduler_seconds`, the front end's as processor
time of its process.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
    """Poisson arrivals; four samplers, four step counts, three guidance scales."""
    jobs, clock = [], 0.0
    for i in range(count):
        clock += rng.expovariate(rate)
        parameters = {"steps": rng.choice((10, 14, 20, 28)), "guidance": rng.choice((1.0, 2.5, 5.0))}
        jobs.append(ImageJob(clock, CAPTIONS[i % 2], i, ("euler", "heun", "ddim", "dpmpp_2m")[i % 4], parameters))
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


def measure(count: int, tokens: int, repeats: int) -> None:
    torch.set_num_threads(1)
    text, image = (load_model(ModelSpec.parse(name), torch.device("cpu")) for name in ("shakespeare", "shapes"))
    assert isinstance(text, TextModel) and isinstance(image, ImageModel)
    words = Tokenizer.from_file(str(image.spec.folder / "tokenizer.json"))
    side = image.network.config.image_size
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "log")
        try:
            for turn in range(repeats):
                rng = random.Random(turn)
                jobs = image_jobs(count, rng, rate=50.0)
                arrivals = [job.arrives for job in jobs]
                bodies: list[dict[str, object]] = [
                    {"model": "shapes", "prompt": j.caption, "seed": j.seed, "procedure": {"name": j.procedure, **j.parameters}}
                    for j in jobs
                ]

                def picture(job: ImageJob) -> Callable[[], object]:
                    seed = torch.tensor([job.seed])
                    noise = normal(seed, torch.zeros_like(seed), INITIAL_NOISE, 3 * side * side).view(1, 3, side, side)
                    return lambda: draw(image.network, words.encode(job.caption).ids, job.procedure, job.parameters, noise)

                rows, forwards = server.metric("stride_batch_rows_sum"), server.metric("stride_batch_rows_count")
                ours = over_http(server, bodies, arrivals)
                filled = (server.metric("stride_batch_rows_sum") - rows) / (server.metric("stride_batch_rows_count") - forwards)
                peer = one_by_one([picture(job) for job in jobs], arrivals)
                print(
                    f"{count} images: {count / ours:.2f}/s against {count / peer:.2f}/s, ratio {peer / ours:.2f}; "
                    f"{filled:.1f} rows a forward"
                )

                prompts = [[rng.randrange(97, 123) for _ in range(32)] for _ in range(count)]
                asked: list[dict[str, object]] = [
                    {"model": "shakespeare", "input_tokens": p, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
                    for p in prompts
                ]
                for streamed in (False, True):
                    host = server.metric("stride_scheduler_seconds_sum", model="shakespeare")
                    front = processor_seconds(server.process.pid)
                    ours = over_http(server, [{**body, "stream": streamed} for body in asked], [0.0] * count)
                    front = processor_seconds(server.process.pid) - front
                    host = server.metric("stride_scheduler_seconds_sum", model="shakespeare") - host
                    peer = one_by_one([lambda p=p: decode(text.network, p, tokens) for p in prompts], [0.0] * count)  # type: ignore[misc]
                    total = count * tokens
                    print(
                        f"{count} texts, {'streamed' if streamed else 'whole'}: {total / ours:.0f} tokens/s against "
                        f"{total / peer:.0f}, ratio {peer / ours:.2f}; a token costs the scheduler {1e6 * host / total:.0f} µs, "
                        f"the front end {1e6 * front / total:.0f} µs"
                    )
        finally:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=16, help="concurrent requests")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    measure(args.count, args.tokens, args.repeats)


if __name__ == "__main__":
    main()
