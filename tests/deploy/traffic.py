"""Clients of all kinds at once, over and over, until they are told to stop."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType

import httpx

OPENING = "Before we proceed any further, hear me speak.\n"
TEXT = {"model": "shakespeare", "prompt": OPENING, "max_tokens": 24, "ignore_eos": True}
PICTURE = {"model": "shapes", "prompt": "a red circle"}
LONG = TEXT | {"max_tokens": 120}


class Client:
    """Of the service at `url`. Who waits for 10 s without a byte goes away, so that a queue does not outlast its traffic."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=10)

    def ask(self, **body: object) -> int:
        return self.http.post("/v1/generate", json=body).status_code

    def leave(self, **body: object) -> None:
        """Reads one event of the stream and goes away."""
        with self.http.stream("POST", "/v1/generate", json=body | {"stream": True}) as answer:
            next(answer.iter_lines())


Step = Callable[[Client], object]


class Traffic:
    """A client a list of steps, as long as the block lasts."""

    def __init__(self, url: str, *clients: Sequence[Step]) -> None:
        self._url, self._clients = url, clients
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(len(clients))

    def __enter__(self) -> Traffic:
        self._runs = [self._pool.submit(self._run, steps) for steps in self._clients]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._pool.shutdown()
        if kind is None:
            for run in self._runs:
                run.result()

    def _run(self, steps: Sequence[Step]) -> None:
        client = Client(self._url)
        for step in itertools.cycle(steps):
            if self._stop.is_set():
                return
            # Impatience, a killed engine and a stopped service end in the middle; 429 comes at once, and is asked again.
            with suppress(httpx.TransportError, StopIteration):
                step(client)
            self._stop.wait(0.1)


def ask(**body: object) -> Step:
    return lambda client: client.ask(**body)


def by(procedure: str, **parameters: object) -> dict[str, object]:
    return {"procedure": {"name": procedure, **parameters}}


def of_all_kinds() -> list[list[Step]]:
    """Texts by every procedure of the embedded model and pictures by some, with qualities, deadlines, mistakes and clients that
    leave."""
    texts = [
        ask(**TEXT),
        ask(**TEXT | by("speculative", drafter="heads", adaptive=False), temperature=0),
        ask(**TEXT | by("block_diffusion", block_length=8)),
        ask(**TEXT, deadline_ms=1),
        lambda client: client.leave(**LONG),
    ]
    pictures = [
        ask(**PICTURE | by("euler", steps=4)),
        ask(**PICTURE | by("heun", steps=3)),
        ask(**PICTURE | by("flow_map", steps=2)),
        ask(**PICTURE | by("dpmpp_2m", steps=3), quality_is_no_field=1),
        ask(**PICTURE, quality="draft"),
        ask(**PICTURE, deadline_ms=150, quality="best"),
        ask(**PICTURE, deadline_ms=60_000, quality="balanced"),
        lambda client: client.leave(**PICTURE | by("euler", steps=50), preview_every=1),
    ]
    # Four that hold memory at a time: these want more of it than there is.
    greedy: list[list[Step]] = [[ask(**LONG, seed=seed)] for seed in range(3)]
    return [texts, texts[2:] + texts[:2], pictures, *greedy]


def flood(clients: int) -> list[list[Step]]:
    """More than the service takes, of texts that share nothing; and some that cannot wait."""
    long: list[list[Step]] = [[ask(**LONG | {"prompt": f"{i} " * 20}, seed=i)] for i in range(clients)]
    return [*long, [ask(**TEXT, deadline_ms=1)]]
