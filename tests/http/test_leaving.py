"""Clients that leave, cancel, or lose the engine under them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.http.server import Server

LONG = {"model": "shakespeare", "prompt": "ROMEO:\n", "max_tokens": 1900, "ignore_eos": True}
KEY = {"Authorization": "Bearer open sesame"}
SLOW_IMAGE = {"model": "shapes", "prompt": "a large red circle", "procedure": {"name": "euler", "steps": 1000}}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One request of a model at a time, and a short queue, behind a key."""
    flags = ("--max-running", "1", "--max-waiting", "1", "--api-key", "open sesame")
    server = Server(tmp_path_factory.mktemp("small") / "log", *flags)
    server._client.headers.update(KEY)
    yield server
    assert server.stop() in (0, -15)


@pytest.mark.parametrize("body", [LONG, SLOW_IMAGE], ids=["text", "image"])
def test_a_streaming_client_that_leaves_frees_everything(server: Server, body: dict) -> None:
    with httpx.stream("POST", server.url + "/v1/generate", json={**body, "stream": True}, timeout=30):
        server.until(lambda: server.metric("stride_requests_running", model=body["model"]) == 1)
    server.until(server.is_idle)


@pytest.mark.parametrize("body", [LONG, SLOW_IMAGE], ids=["text", "image"])
def test_a_client_that_waits_for_the_whole_and_leaves_frees_everything(server: Server, body: dict) -> None:
    with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(server.url + "/v1/generate", json=body, timeout=0.5)
    server.until(server.is_idle)
    assert server.metric("stride_requests_total", outcome="cancelled", model=body["model"]) >= 1


def test_a_request_can_be_cancelled_by_its_id(server: Server) -> None:
    with httpx.stream("POST", server.url + "/v1/generate", json={**LONG, "stream": True}, timeout=30) as response:
        name = response.headers["x-request-id"]
        lines = response.iter_lines()
        next(lines)
        assert httpx.delete(f"{server.url}/v1/requests/{name}").json() == {"id": name, "cancelled": True}
        done = [json.loads(line[6:]) for line in lines if line.startswith("data: ")][-1]
    assert done["outputs"][0]["finish_reason"] == "cancelled" and len(done["outputs"][0]["token_ids"]) < 1900
    missing = httpx.delete(f"{server.url}/v1/requests/{name}")
    assert missing.status_code == 404 and missing.json()["error"]["param"] == "id"
    server.until(server.is_idle)


def test_a_full_queue_says_when_to_come_back(small: Server) -> None:
    answers: list[int] = []

    def ask() -> None:
        body = {**SLOW_IMAGE, "procedure": {"name": "euler", "steps": 80}}
        response = httpx.post(small.url + "/v1/generate", json=body, headers=KEY, timeout=60)
        answers.append(response.status_code)
        if response.status_code == 429:
            assert response.headers["retry-after"] and response.json()["error"]["code"] == "queue_full"

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) == {200, 429} and len(answers) == 10
    small.until(small.is_idle)


def test_a_deadline_that_passes_in_the_queue_is_a_504_or_an_error_event_of_a_stream(small: Server) -> None:
    with httpx.stream("POST", small.url + "/v1/generate", json={**LONG, "stream": True}, headers=KEY, timeout=30):
        small.until(lambda: small.metric("stride_requests_running") == 1)
        late = small.post("/v1/completions", {"model": "shakespeare", "prompt": "x", "deadline_ms": 50})
        body = {"model": "shakespeare", "prompt": "x", "deadline_ms": 50, "stream": True}
        streamed = [small.post(path, body) for path in ("/v1/completions", "/v1/generate")]
    assert late.status_code == 504 and late.json()["error"]["param"] == "deadline_ms"
    for answer in streamed:
        assert answer.status_code == 200 and '"param":"deadline_ms"' in answer.text.replace(": ", ":")
    assert streamed[1].text.startswith("event: error")
    small.until(lambda: small.metric("stride_deadlines_missed_total") == 3)
    small.until(small.is_idle)


PROCEDURES: tuple[dict[str, object], ...] = (
    {"name": "autoregressive"},
    {"name": "speculative", "drafter": "heads", "adaptive": False},
    {"name": "block_diffusion", "block_length": 32, "threshold": 1.0},
)


def test_a_killed_engine_fails_what_ran_in_it_and_comes_back(server: Server) -> None:
    restarts = server.metric("stride_engine_restarts_total")
    body = {"model": "shakespeare", "prompt": "KING:", "max_tokens": 40, "seed": 3, "ignore_eos": True}
    asked = [body | {"procedure": procedure} for procedure in PROCEDURES]
    before = [server.post("/v1/generate", one).json()["outputs"] for one in asked]
    assert before[0] == before[1] != before[2]
    with ExitStack() as streams:
        begun = []
        for procedure in PROCEDURES:
            stream = {**LONG, "stream": True, "procedure": procedure}
            response = streams.enter_context(httpx.stream("POST", server.url + "/v1/generate", json=stream, timeout=30))
            begun.append(response.iter_lines())
            next(begun[-1])
        server.kill_engine()
        for lines in begun:
            rest = "\n".join(lines)
            assert "event: error" in rest and "engine_unavailable" in rest and "event: done" not in rest
    server.until(lambda: server.metric("stride_engine_restarts_total") == restarts + 1)
    server.wait_ready()
    assert [server.post("/v1/generate", one).json()["outputs"] for one in asked] == before
    server.until(server.is_idle)


def test_a_key_is_asked_for_where_it_matters(small: Server) -> None:
    body = {"model": "shakespeare", "prompt": "x", "max_tokens": 1}
    refused = httpx.post(small.url + "/v1/completions", json=body)
    assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
    assert httpx.post(small.url + "/v1/completions", json=body, headers=KEY).status_code == 200
    for given, status in (("bearer open sesame", 200), ("BEARER  open sesame", 200), ("Basic open sesame", 401)):
        assert httpx.get(small.url + "/v1/models", headers={"Authorization": given}).status_code == status
    assert httpx.get(small.url + "/metrics").status_code == 200
