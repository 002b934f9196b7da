"""A server that is told to stop finishes what it has, or says why it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import httpx

from tests.http.server import Server

NUMBER = 30
HELD_BACK = ("--max-running", "8", "--threads", "1")


def asked(i: int, tokens: int, steps: int) -> tuple[str, dict[str, Any]]:
    """The i-th of many requests: texts and pictures, streamed and not, OpenAI's routes and Stride's own."""
    stream = i % 2 == 0
    text = {"model": "shakespeare", "prompt": f"{i}:", "max_tokens": tokens, "ignore_eos": True, "stream": stream}
    picture = {
        "model": "shapes", "prompt": "a red circle", "seed": i, "procedure": {"name": "euler", "steps": steps}, "stream": stream,
    }  # fmt: skip
    kinds = [
        ("/v1/generate", text), ("/v1/completions", text), ("/v1/generate", picture), ("/v1/images/generations", picture),
        ("/v1/chat/completions", text | {"messages": [{"role": "user", "content": str(i)}]}),
    ]  # fmt: skip
    path, body = kinds[i // 2 % len(kinds)]
    return path, {key: value for key, value in body.items() if key != "prompt" or "messages" not in body}


def ends(path: str, response: httpx.Response) -> str:
    """`completed`, or the code of the error that a client was told. Fails for an answer that just stops."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        answer = response.json()
        if response.status_code == 200:
            return "completed" if answer.get("outputs") or answer.get("choices") or answer.get("data") else "nothing"
        assert response.status_code == 503 and response.headers["retry-after"]
        return str(answer["error"]["code"])
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    if events[-1] == "[DONE]":
        return "completed"
    last = json.loads(events[-1])
    if "error" in last:
        return str(last["error"]["code"])
    finished = last["type"].endswith(".completed") if "images" in path else all(o["finish_reason"] for o in last["outputs"])
    assert finished, f"{path} was cut: {events[-1]:.200}"
    return "completed"


async def under_signal(server: Server, tokens: int, steps: int) -> tuple[list[str], list[httpx.Response]]:
    """What became of all requests, and what others were told that came after the signal: first of all about health."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=100, limits=limits) as client:
        bodies = [asked(i, tokens, steps) for i in range(NUMBER)]
        asking = [asyncio.create_task(client.post(path, json=body)) for path, body in bodies]

        def all_are_there() -> bool:
            inside = server.metric("stride_requests_running") + server.metric("stride_requests_waiting")
            return inside + server.metric("stride_requests_total") >= NUMBER

        await asyncio.to_thread(server.until, all_are_there, 100)
        assert server.metric("stride_requests_total") < NUMBER / 2, "too few are left to show anything"
        server.process.send_signal(signal.SIGTERM)
        late = []
        while not late or late[0].status_code == 200:
            late[:] = [await client.get("/health/ready")]
        for path in ("/health", "/health/live", "/metrics"):
            late.append(await client.get(path))
        late += [await client.post(path, json=body) for path, body in bodies[:10]]
        answers = await asyncio.gather(*asking)
    return [ends(path, answer) for (path, _), answer in zip(bodies, answers, strict=True)], late


def check_late(late: list[httpx.Response]) -> None:
    ready, health, live, metrics, *posted = late
    assert live.status_code == metrics.status_code == 200
    for answer in (ready, health, *posted):
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
        error = answer.json()["error"]
        assert error["code"] == "draining" and error["type"] == "server_error" and "shutting down" in error["message"]
        assert answer.headers["connection"] == "close"


def test_running_and_queued_requests_finish_and_new_ones_are_told_to_come_back(tmp_path: Path) -> None:
    server = Server(tmp_path / "log", *HELD_BACK, "--drain-seconds", "90", "--drain-notice-seconds", "2", ready_seconds=100)
    outcomes, late = asyncio.run(under_signal(server, tokens=80, steps=30))
    assert outcomes == ["completed"] * NUMBER
    check_late(late)
    assert server.process.wait(timeout=30) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_what_cannot_finish_in_time_is_told_so_also_before_its_body_is_there(tmp_path: Path) -> None:
    server = Server(tmp_path / "log", *HELD_BACK, "--drain-seconds", "0.5", ready_seconds=100)
    head = b"POST /v1/generate HTTP/1.1\r\nHost: stride\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":")[-1]))) as half:
        half.sendall(head)
        outcomes, late = asyncio.run(under_signal(server, tokens=1900, steps=1000))
        half.settimeout(30)
        answer = b"".join(iter(lambda: half.recv(1 << 16), b""))
    assert set(outcomes) <= {"completed", "draining"} and outcomes.count("draining") > NUMBER / 2
    check_late(late)
    assert answer.startswith(b"HTTP/1.1 503") and b'"code":"draining"' in answer and b"retry-after: " in answer
    assert server.process.wait(timeout=30) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_second_signal_ends_the_server_and_its_engine_at_once(tmp_path: Path) -> None:
    server = Server(tmp_path / "log", "--model", "shakespeare", ready_seconds=100)
    engine = Path(f"/proc/{server.engine_pid()}")
    body = {"model": "shakespeare", "prompt": "x", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", server.url + "/v1/generate", json=body, timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGINT)
        server.until(lambda: httpx.get(server.url + "/health/ready").status_code == 503)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=30) == 128 + signal.SIGINT
        last = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")][-1]
    assert json.loads(last)["error"]["code"] == "draining"
    server.until(lambda: not engine.exists())
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_signal_to_the_whole_group_ends_no_request_and_an_idle_server_stays_for_its_notice(tmp_path: Path) -> None:
    server = Server(tmp_path / "log", "--model", "shakespeare", "--drain-notice-seconds", "600", ready_seconds=100)
    body = {"model": "shakespeare", "prompt": "x", "max_tokens": 40, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", server.url + "/v1/generate", json=body, timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        for pid in (server.engine_pid(), server.process.pid):
            os.kill(pid, signal.SIGTERM)
        done = [json.loads(line[6:]) for line in lines if line.startswith("data: ")][-1]
    assert done["outputs"][0]["finish_reason"] == "length"
    for _ in range(2):
        assert httpx.get(server.url + "/health/ready").json()["error"]["code"] == "draining"
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=30) == 128 + signal.SIGTERM
