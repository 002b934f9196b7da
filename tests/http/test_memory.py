"""Memory as a cache, as clients and Prometheus see it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.http.server import Server

PREFIX = ("The quick brown fox jumps over the lazy dog, and then it rests. " * 16)[:1000]
BLOCK = 16


def test_64_requests_that_share_1000_tokens_compute_them_once(server: Server) -> None:
    server.until(server.is_idle)

    def tokens(kind: str) -> float:
        return server.metric("stride_tokens_total", model="shakespeare", kind=kind)

    def ask(i: int) -> dict:
        body = {"model": "shakespeare", "prompt": f"{PREFIX}{i:02}", "max_tokens": 4, "temperature": 0}
        answer = server.post("/v1/generate", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    before = {kind: tokens(kind) for kind in ("prompt", "cached")}
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    server.until(server.is_idle)
    shared = len(PREFIX) // BLOCK * BLOCK
    cached = [answer["usage"]["cached_tokens"] for answer in answers]
    # Most often one computes it all; where the request that came first is taken in second, the two share the work.
    assert sum(cached) == 63 * shared
    computed = tokens("prompt") - before["prompt"]
    assert computed == 64 * 1002 - 63 * shared  # the prefix once, and of each request the block that is its own
    assert tokens("cached") - before["cached"] == 63 * shared
    assert server.metric("stride_kv_blocks", model="shakespeare", state="cached") >= shared / BLOCK
    again = ask(7)
    assert again["usage"]["cached_tokens"] == shared
    assert again["outputs"][0]["token_ids"] == answers[7]["outputs"][0]["token_ids"]


def test_openai_clients_see_cached_tokens(server: Server) -> None:
    body = {"model": "shakespeare", "prompt": PREFIX[:100] + "?", "max_tokens": 1}
    usages = [server.post("/v1/completions", body).json()["usage"] for _ in range(2)]
    assert usages[1]["prompt_tokens_details"]["cached_tokens"] == 96


def test_requests_set_back_for_memory_end_as_they_would_have_and_are_counted(server: Server, tmp_path: Path) -> None:
    def ask(asked: Server, i: int) -> list[int]:
        body = {"model": "shakespeare", "prompt": f"{i}: {PREFIX[:50]}", "max_tokens": 100, "seed": i, "ignore_eos": True}
        answer = asked.post("/v1/generate", body)
        assert answer.status_code == 200, answer.text
        return answer.json()["outputs"][0]["token_ids"]

    roomy = [ask(server, i) for i in range(3)]
    assert server.metric("stride_preemptions_total") == 0
    tight = Server(tmp_path / "log", "--model", "shakespeare", "--kv-memory", str(1 << 20))  # 18 blocks; each wants 10
    try:
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(lambda i: ask(tight, i), range(3))) == roomy
        tight.until(tight.is_idle)
        assert tight.metric("stride_preemptions_total", model="shakespeare") > 0
        states = {state: tight.metric("stride_kv_blocks", state=state) for state in ("used", "cached", "free")}
        assert sum(states.values()) == 18 and states["used"] == 0 and states["cached"] > 0
    finally:
        tight.stop()
