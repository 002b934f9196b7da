"""`stride bench` against a small server that speaks the protocol over a real socket."""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from service.bench import add_arguments, run
from service.bench.client import Outcome
from service.bench.local_server import local_server
from service.bench.report import as_table, percentile, summarise
from service.bench.workload import Mix, make_workload

TOKEN_SECONDS = 0.02
MIX = Mix(0.5, "words", "pictures", ("autoregressive",), (8, 16), ("euler", "flow_map"), (10, 20), (1, 2), (1.0, 3.0))


class FakeService(ThreadingHTTPServer):
    """Answers `/v1/models` and `/v1/generate`; keeps the bodies it got and the most requests it had at a time."""

    daemon_threads = True
    request_queue_size = 128  # a burst of connections is not reset while the machine is busy

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.lock = threading.Lock()
        self.running = self.most_running = 0
        self.break_images = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FakeService

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.requestline.split()[1])  # `path` has no two slashes at its beginning
        models = [{"id": "words", "kind": "text"}, {"id": "pictures", "kind": "image"}]
        self._answer(200, "application/json", json.dumps({"object": "list", "data": models}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
        try:
            if body["model"] == "words":
                self._tokens()
            elif self.server.break_images:
                self._answer(400, "application/json", json.dumps({"error": {"message": "no such sampler"}}))
            else:
                done = {"outputs": [{"index": 0, "image": "AAAA"}], "usage": {"nfe": 10}}
                self._answer(200, "text/event-stream", _event("done", done))
        finally:
            with self.server.lock:
                self.server.running -= 1

    def _tokens(self) -> None:
        self._answer(200, "text/event-stream", _event("token", {"index": 0, "text": "a", "token_ids": [1]}))
        for _ in range(2):
            time.sleep(TOKEN_SECONDS)
            self.wfile.write(_event("token", {"index": 0, "text": "bc", "token_ids": [2, 3]}).encode())
        self.wfile.write(_event("done", {"outputs": [{"index": 0, "text": "abcbc"}], "usage": {}}).encode())

    def _answer(self, status: int, content_type: str, content: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.end_headers()
        self.wfile.write(content.encode())


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


@pytest.fixture
def fake() -> Iterator[FakeService]:
    server = FakeService()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def bench(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(flags))


def test_a_run_reports_what_was_delivered_and_writes_json_and_plot(
    fake: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--url", fake.url, "--requests", "12", "--concurrency", "3", "--output", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    for words in ("first output", "between tokens", "end to end", "p50", "p90", "p99", "tokens/s", "images/s"):
        assert words in printed
    assert "12 requests" in printed and "0 errors" in printed
    written = json.loads((tmp_path / "bench.json").read_text())
    texts = sum(body["model"] == "words" for body in fake.bodies)
    assert 0 < texts < 12
    wall = written["summary"]["wall_seconds"]
    assert written["summary"]["tokens_per_second"] * wall == pytest.approx(5 * texts)
    assert written["summary"]["images_per_second"] * wall == pytest.approx(12 - texts)
    between = written["summary"]["latency"]["text"]["between_tokens"]["p50"]
    assert 0.9 * TOKEN_SECONDS <= between <= written["summary"]["latency"]["text"]["end_to_end"]["p50"]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_concurrency_is_kept_and_never_exceeded(fake: FakeService) -> None:
    assert bench("--url", fake.url, "--requests", "12", "--concurrency", "3", "--text", "1") == 0
    assert fake.most_running == 3


def test_with_a_rate_requests_do_not_wait_for_each_other(fake: FakeService) -> None:
    assert bench("--url", fake.url, "--requests", "20", "--rate", "1000", "--text", "1") == 0
    assert fake.most_running > 8


def test_a_refused_request_is_an_error_with_the_servers_message(fake: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    fake.break_images = True
    assert bench("--url", fake.url, "--requests", "4", "--text", "0") == 1
    printed = capsys.readouterr().out
    assert "4 errors" in printed
    assert "4 x 400: no such sampler" in printed


def test_a_server_that_is_not_there_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--url", "http://127.0.0.1:9", "--requests", "1") == 1
    assert "stride bench:" in capsys.readouterr().err


def test_a_server_that_cannot_start_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--requests", "1", "--serve-args=--no-such-flag") == 1
    assert "ended with status 2 before it was ready" in capsys.readouterr().err


def test_a_slash_behind_the_address_is_none_too_many(fake: FakeService) -> None:
    assert bench("--url", fake.url + "/", "--requests", "2") == 0
    assert fake.asked == ["/v1/models"]


def test_the_server_of_a_run_takes_no_key_and_is_asked_directly_and_ended(
    monkeypatch: pytest.MonkeyPatch, fake: FakeService
) -> None:
    monkeypatch.setenv("STRIDE_API_KEY", "secret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    started: list[dict[str, str]] = []

    class Process:
        returncode = None
        ended = False

        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            started.append(env)

        def poll(self) -> None:
            return None

        def terminate(self) -> None:
            Process.ended = True

        def wait(self, timeout: float | None = None) -> int:
            return 0

    monkeypatch.setattr("service.bench.local_server.subprocess.Popen", Process)
    monkeypatch.setattr("service.bench.local_server._free_port", lambda: fake.server_address[1])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, local_server([], 5.0):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5.0)
    assert ended.value.code == 143 and Process.ended and signal.getsignal(signal.SIGTERM) is before
    assert "STRIDE_API_KEY" not in started[0]
    assert bench("--requests", "2") == 0


def test_a_seed_gives_the_same_requests_at_any_rate() -> None:
    closed, slow, fast = (make_workload(MIX, 50, 7, rate) for rate in (None, 1.0, 100.0))
    assert [job.body for job in closed] == [job.body for job in slow] == [job.body for job in fast]
    assert [job.body for job in closed] != [job.body for job in make_workload(MIX, 50, 8, None)]
    assert {job.kind for job in closed} == {"text", "image"}
    assert slow[-1].arrival == pytest.approx(100 * fast[-1].arrival)


def test_arrivals_have_the_rate_that_was_asked_for() -> None:
    arrivals = [job.arrival for job in make_workload(MIX, 4000, 0, 20.0)]
    gaps = [after - before for before, after in zip([0.0, *arrivals], arrivals, strict=False)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 20, rel=0.06)
    assert deviation == pytest.approx(mean, rel=0.1)  # as it is for an exponential distribution


def test_a_flow_map_gets_jumps_and_other_samplers_steps() -> None:
    for job in make_workload(MIX, 100, 0, None):
        if job.kind == "image":
            procedure = job.body["procedure"]
            assert procedure["steps"] in (MIX.jumps if procedure["name"] == "flow_map" else MIX.steps)


def test_a_mix_without_its_model_is_refused() -> None:
    with pytest.raises(ValueError, match="--text 1"):
        make_workload(Mix(0.5, "words", None, ("autoregressive",), (8,), ("euler",), (4,), (1,), (1.0,)), 1, 0, None)


def test_percentiles_interpolate_between_ranks() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile([1.0], 0.99) == 1.0
    assert percentile([float(value) for value in range(101)], 0.9) == 90.0


def test_failed_requests_count_as_errors_and_not_in_rates_or_latency() -> None:
    good = Outcome(0, "text", 0.0, first_output=0.1, gaps=[0.2], total=0.5, tokens=10)
    bad = Outcome(1, "text", 0.0, first_output=9.0, gaps=[9.0], total=9.0, tokens=99, error="gone")
    summary = summarise([good, bad], 2.0)
    assert (summary.requests, summary.errors, summary.tokens_per_second) == (2, 1, 5.0)
    assert summary.latency["text"]["end_to_end"]["p99"] == 0.5
    assert "1 x gone" in as_table(summary)
