"""Contestants behind HTTP, asked in OpenAI's words by a client that does nothing but note when bytes come.

The client shares the processors with the server. It therefore reads raw bytes, and takes them apart when the clock has
stopped.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h11
import httpx

from tests.benchmarks.contestant import Prompt, Stream, Unavailable, peak_memory

Chunks = list[tuple[float, bytes]]


class HttpServer:
    """A server process with OpenAI's `/v1/completions` on a free port. Raises Unavailable when it does not get ready."""

    def __init__(self, command: list[str], ready: str, log: Path, body: dict[str, Any]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._body = body
        with log.open("w") as out:
            self._process = subprocess.Popen([*command, "--port", str(self._port)], stdout=out, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while not self._answers(ready):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise Unavailable(f"the server did not get ready: {log.read_text()[-300:].strip()}")
            time.sleep(0.05)

    def generate(self, prompts: Sequence[Prompt], count: int) -> list[Stream]:
        bodies = [{**self._body, "prompt": prompt.text, "max_tokens": count, "stream": True} for prompt in prompts]
        return [stream(http, chunks, count) for http, chunks in asyncio.run(self._ask_all(bodies))]

    def peak_memory(self) -> int:
        return peak_memory(self._process.pid)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self, path: str) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self._port}{path}").status_code == 200
        except httpx.TransportError:
            return False

    async def _ask_all(self, bodies: list[dict[str, Any]]) -> list[tuple[h11.Connection, Chunks]]:
        began = time.perf_counter()
        return await asyncio.gather(*(self._ask(body, began) for body in bodies))

    async def _ask(self, body: dict[str, Any], began: float) -> tuple[h11.Connection, Chunks]:
        content = json.dumps(body).encode()
        http = h11.Connection(h11.CLIENT)
        headers = [("Host", "127.0.0.1"), ("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        request = h11.Request(method="POST", target="/v1/completions", headers=[*headers, ("Connection", "close")])
        sent = (http.send(request) or b"") + (http.send(h11.Data(content)) or b"") + (http.send(h11.EndOfMessage()) or b"")
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(sent)
        chunks: Chunks = []
        while piece := await reader.read(1 << 16):
            chunks.append((time.perf_counter() - began, piece))
        writer.close()
        return http, chunks


def stream(http: h11.Connection, chunks: Chunks, asked: int) -> Stream:
    """What came, and when. Raises Unavailable with the server's words when it is not the text that was asked for.

    A server that gives no token ids is believed that there were as many as asked when it says that the length ended it.
    """
    first = last = 0.0
    tokens, reason = list[int](), None
    for at, event in _events(http, chunks):
        if "choices" not in event:
            raise Unavailable(f"the server answered {event}")
        for choice in event["choices"]:
            if choice["text"] or choice.get("token_ids"):
                first, last = first or at, at
                tokens += choice.get("token_ids") or []
            reason = choice["finish_reason"] or reason
    if reason != "length" or (tokens and len(tokens) != asked):
        raise Unavailable(f"the stream ended by {reason!r} with {len(tokens)} tokens")
    return Stream(first, last, asked, tuple(tokens))


def _events(http: h11.Connection, chunks: Chunks) -> Iterator[tuple[float, dict[str, Any]]]:
    """(seconds, JSON) of every server-sent event but `[DONE]`; an answer that is no stream is one event."""
    held = b""
    for at, piece in chunks:
        http.receive_data(piece)
        while (event := http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                break
            if isinstance(event, h11.Response) and event.status_code != 200:
                raise Unavailable(f"status {event.status_code}: {b''.join(data for _, data in chunks)[-300:]!r}")
            if isinstance(event, h11.Data):
                held += bytes(event.data)
        *lines, held = held.split(b"\n")
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                yield at, json.loads(data)


def stride(folder: Path, threads: int, options: str, log: Path) -> HttpServer:
    """`stride serve`, with `options` behind the model's folder; threads 0 is its own choice."""
    model = ",".join(filter(None, (f"bench={folder}", options)))
    command = [sys.executable, "-m", "service.cli", "serve", "--model", model, "--threads", str(threads)]
    body = {"model": "bench", "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    return HttpServer(command, "/health/ready", log, body)


def llama_server(folder: Path, threads: int, precision: str, log: Path) -> HttpServer:
    """`python -m llama_cpp.server`, which answers one request after another."""
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(folder / f"model-{precision}.gguf"), "--n_ctx", "512"]
    command += ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--interrupt_requests", "False"]
    body = {"temperature": 0, "top_k": 1, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
    return HttpServer(command, "/v1/models", log, body)
