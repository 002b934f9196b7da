"""The arguments of `stride bench`, and the run from workload to report."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import httpx
from tqdm import tqdm

from service.bench.client import Outcome, drive
from service.bench.local_server import local_server
from service.bench.report import as_table, summarise, write_json, write_plot
from service.bench.workload import Mix, make_workload

SAMPLERS = ("euler", "heun", "ddim", "dpmpp_2m", "flow_map")
Item = TypeVar("Item", int, float, str)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `stride bench`."""
    server = parser.add_argument_group("server")
    own = "a running server; without it, one is started for the run"
    server.add_argument("--url", type=lambda text: text.rstrip("/"), help=own)
    server.add_argument("--api-key", help="sent as a bearer token")
    server.add_argument("--serve-args", default="", help='for the server that is started, such as "--threads 2"')
    server.add_argument("--ready-seconds", type=_positive(float), default=120.0, help="how long it may take to start")
    load = parser.add_argument_group("load")
    load.add_argument("--requests", type=_positive(int), default=64)
    pace = load.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=_positive(float), help="Poisson arrivals, requests a second")
    pace.add_argument("--concurrency", type=_positive(int), default=8, help="requests always under way (default 8)")
    load.add_argument("--seed", type=int, default=0)
    load.add_argument("--timeout", type=_positive(float), default=300.0, help="seconds without a byte")
    mix = parser.add_argument_group("mix")
    mix.add_argument("--text", type=_share, default=0.5, metavar="SHARE", help="share of token requests, 0 to 1")
    mix.add_argument("--text-model", help="default: the first text model that the server lists")
    mix.add_argument("--image-model", help="default: the first image model that the server lists")
    mix.add_argument("--procedures", type=_list_of(str), default=("autoregressive", "block_diffusion"), metavar="LIST")
    mix.add_argument("--max-tokens", type=_list_of(int), default=(32, 64, 128), metavar="LIST")
    mix.add_argument("--samplers", type=_list_of(str), default=SAMPLERS, metavar="LIST")
    mix.add_argument("--steps", type=_list_of(int), default=(10, 20, 30, 50), metavar="LIST")
    mix.add_argument("--jumps", type=_list_of(int), default=(1, 2, 4, 8), metavar="LIST", help="steps of flow_map")
    mix.add_argument("--guidance", type=_list_of(float), default=(1.0, 2.0, 4.0), metavar="LIST")
    mix.add_argument("--preview-every", type=int, default=0, metavar="STEPS", help="partial images; 0 is none")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write bench.json and bench.png there")


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark and prints its report. Returns 0 when every request ended well, else 1."""
    try:
        server = nullcontext(args.url) if args.url else local_server(shlex.split(args.serve_args), args.ready_seconds)
        with server as url:
            outcomes, wall_seconds = _measure(args, url)
    except (RuntimeError, ValueError, httpx.HTTPError) as error:
        print(f"stride bench: {error}", file=sys.stderr)
        return 1
    summary = summarise(outcomes, wall_seconds)
    print(as_table(summary))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        write_json(args.output / "bench.json", _options(args), summary, outcomes)
        write_plot(args.output / "bench.png", summary, outcomes)
        print(f"written: {args.output / 'bench.json'}, {args.output / 'bench.png'}")
    return 1 if summary.errors else 0


def _measure(args: argparse.Namespace, url: str) -> tuple[list[Outcome], float]:
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    abroad = args.url is not None  # no proxy stands between this machine and itself
    models = {} if args.text_model and args.image_model else _served_models(url, headers, abroad)
    mix = Mix(
        text_share=args.text,
        text_model=args.text_model or models.get("text"),
        image_model=args.image_model or models.get("image"),
        text_procedures=args.procedures,
        max_tokens=args.max_tokens,
        samplers=args.samplers,
        steps=args.steps,
        jumps=args.jumps,
        guidance=args.guidance,
        preview_every=args.preview_every,
    )
    jobs = make_workload(mix, args.requests, args.seed, args.rate)
    concurrency = None if args.rate else args.concurrency
    with tqdm(total=len(jobs), unit="req", disable=None) as bar:
        return asyncio.run(drive(url, jobs, concurrency, headers, args.timeout, lambda _: bar.update(), abroad))


def _served_models(url: str, headers: dict[str, str], trust_env: bool) -> dict[str, str]:
    """The first model of each kind that the server lists."""
    response = httpx.get(f"{url}/v1/models", headers=headers, timeout=30, trust_env=trust_env)
    response.raise_for_status()
    found: dict[str, str] = {}
    for entry in response.json()["data"]:
        found.setdefault(entry.get("kind", ""), entry["id"])
    return found


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, without the key and without what other commands put into the namespace."""
    plain = (int, float, str, tuple, type(None))
    return {name: value for name, value in vars(args).items() if name != "api_key" and isinstance(value, plain)}


def _positive(kind: type[Item]) -> Callable[[str], Item]:
    def convert(text: str) -> Item:
        value = kind(text)
        if not 0 < float(value) < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    return convert


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _list_of(kind: type[Item]) -> Callable[[str], tuple[Item, ...]]:
    def convert(text: str) -> tuple[Item, ...]:
        values = tuple(kind(part.strip()) for part in text.split(",") if part.strip())
        if not values:
            raise argparse.ArgumentTypeError("an empty list")
        return values

    return convert
