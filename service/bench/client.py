"""Sends jobs to a running server and times what comes back, event by event."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from service.bench.workload import Job, Kind


@dataclass
class Outcome:
    """What became of one request. Seconds; `start` counts from the beginning of the benchmark."""

    index: int
    kind: Kind
    start: float
    first_output: float | None = None
    gaps: list[float] = field(default_factory=list)
    total: float = 0.0
    tokens: int = 0
    images: int = 0
    error: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)


async def server_events(response: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """(event, data) of a `text/event-stream` whose data are JSON objects; a closing `[DONE]` is skipped."""
    name, data = "message", []
    async for line in response.aiter_lines():
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            text, event = "\n".join(data), name
            name, data = "message", []
            if text != "[DONE]":
                yield event, json.loads(text)


async def send(client: httpx.AsyncClient, job: Job, began: float) -> Outcome:
    """One request from its first byte to its end. Failures are recorded, not raised."""
    sent = time.perf_counter()
    outcome = Outcome(job.index, job.kind, sent - began)
    try:
        async with client.stream("POST", "/v1/generate", json=job.body) as response:
            if response.status_code != 200:
                outcome.error = f"{response.status_code}: {_message(await response.aread())}"
            else:
                await _receive(response, outcome, sent)
    except (httpx.HTTPError, ValueError, KeyError) as error:  # a lost connection, or an event that is not as documented
        outcome.error = f"{type(error).__name__}: {error}"
    outcome.total = time.perf_counter() - sent
    return outcome


async def _receive(response: httpx.Response, outcome: Outcome, sent: float) -> None:
    last: float | None = None
    ended = False
    async for event, data in server_events(response):
        now = time.perf_counter()
        if event in ("token", "preview", "done") and outcome.first_output is None:
            outcome.first_output = now - sent
        if event == "token":
            if last is not None:
                outcome.gaps.append(now - last)
            last = now
            outcome.tokens += len(data["token_ids"])
        elif event == "done":
            ended = True
            outcome.usage = data.get("usage") or {}
            outcome.images += sum("image" in output for output in data.get("outputs", []))
        elif event == "error":
            ended = True
            outcome.error = str(data.get("error", data))
    if not ended:
        outcome.error = "the stream ended without done or error"


def _message(body: bytes) -> str:
    """The message of an OpenAI-shaped error, or the beginning of whatever else came."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


async def drive(
    url: str,
    jobs: Sequence[Job],
    concurrency: int | None,
    headers: dict[str, str],
    timeout: float,
    finished: Callable[[Outcome], None],
    trust_env: bool = True,
) -> tuple[list[Outcome], float]:
    """All jobs, and the seconds from the first to the last byte.

    With `concurrency`, that many are always under way; without, each is sent at its own arrival time however many
    still run. `finished` is called as each one ends. With `trust_env` the environment's proxies are used.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    slots = asyncio.Semaphore(concurrency or max(1, len(jobs)))
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, limits=limits, trust_env=trust_env) as client:
        began = time.perf_counter()

        async def one(job: Job) -> Outcome:
            if concurrency is None:
                await asyncio.sleep(job.arrival - (time.perf_counter() - began))
            async with slots:
                outcome = await send(client, job, began)
            finished(outcome)
            return outcome

        outcomes = await asyncio.gather(*(one(job) for job in jobs))
        return list(outcomes), time.perf_counter() - began
