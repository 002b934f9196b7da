"""Logs and traces of a real server: one line and one span a request, with its parts, and never a word of what a client wrote."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from service.api.call import Call
from service.api.tracing import Tracing
from tests.http.collector import Collector, attributes
from tests.http.server import Server

SECRET = "Wherefore"
TEXT = {"model": "shakespeare", "prompt": SECRET, "max_tokens": 12, "ignore_eos": True, "seed": 3, "temperature": 0.5}
CHAT = {"model": "shakespeare", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 6, "n": 2, "stream": True}
CANVAS = TEXT | {"procedure": {"name": "block_diffusion", "block_length": 8}}
PICTURE = {"model": "shapes", "prompt": "a red circle", "procedure": {"name": "euler", "steps": 4}}
LONG = {"model": "shakespeare", "prompt": SECRET, "max_tokens": 1900, "ignore_eos": True}
PARENT = "00f067aa0ba902b7"


class Watched(Server):
    """With a collector, and a log in JSON."""

    def __init__(self, folder: Path, collector: Collector, *arguments: str) -> None:
        self.path = folder / "log"
        self.collector = collector
        flags = ("--log-format", "json", "--log-level", "debug", "--otlp-endpoint", collector.url)
        super().__init__(self.path, *flags, *arguments, ready_seconds=100)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def line(self, name: str) -> dict[str, Any]:
        """The one line of the request with this id."""
        self.until(lambda: any(line.get("id") == name for line in self.lines()))
        (line,) = [line for line in self.lines() if line.get("id") == name]
        return line

    def ask(self, path: str, body: dict[str, Any], trace: int, **headers: str) -> httpx.Response:
        head = {"traceparent": f"00-{trace:032x}-{PARENT}-01", **headers}
        return httpx.post(self.url + path, json=body, headers=head, timeout=100)

    def spans(self, trace: int, number: int) -> tuple[Span, list[Span]]:
        """The server's span of a trace, which has so many, and the others by their start."""
        self.until(lambda: len(self.collector.of(f"{trace:032x}")) == number, 30)
        spans = self.collector.of(f"{trace:032x}")
        (server,) = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
        return server, [span for span in spans if span is not server]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    collector = Collector()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # ms; spans wait for company 5 s long otherwise
        server = Watched(tmp_path_factory.mktemp("watched"), collector)
    yield server
    assert server.stop() == 0
    collector.stop()


def check_stages(server: Span, stages: list[Span], names: list[str]) -> None:
    """They follow one another within the server's span, from its start on."""
    assert [stage.name for stage in stages] == names
    assert all(stage.parent_span_id == server.span_id for stage in stages)
    assert stages[0].start_time_unix_nano == server.start_time_unix_nano
    for before, after in pairwise(stages):
        assert before.end_time_unix_nano == after.start_time_unix_nano
    assert stages[-1].end_time_unix_nano <= server.end_time_unix_nano


def test_a_text_has_a_span_with_its_stages_below_the_clients_and_a_line(watched: Watched) -> None:
    answer = watched.ask("/v1/completions", TEXT, 1, **{"X-Request-Id": "my-text:1"})
    assert answer.headers["x-request-id"] == answer.json()["id"] == "my-text:1"
    server, stages = watched.spans(1, 4)
    assert server.name == "text_completion shakespeare" and server.parent_span_id.hex() == PARENT
    check_stages(server, stages, ["queue", "prefill", "decode"])
    said = attributes(server)
    usage = answer.json()["usage"]
    assert said | {
        "gen_ai.operation.name": "text_completion", "gen_ai.request.model": "shakespeare", "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 12, "gen_ai.request.seed": 3, "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.response.id": "my-text:1", "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": 12, "stride.procedure": "autoregressive", "stride.forwards": usage["forwards"],
        "http.request.method": "POST", "http.route": "/v1/completions", "http.response.status_code": 200,
    } == said  # fmt: skip
    line = watched.line("my-text:1")
    assert line | {
        "level": "info", "process": "api", "message": "POST /v1/completions", "trace_id": f"{1:032x}", "status": 200,
        "outcome": "length", "model": "shakespeare", "procedure": "autoregressive", "prompt_tokens": usage["prompt_tokens"],
        "generated_tokens": 12, "forwards": usage["forwards"],
    } == line  # fmt: skip
    assert 0 <= line["queue_seconds"] <= line["first_output_seconds"] <= line["total_seconds"]


def test_pictures_canvases_and_several_outputs_have_their_stages(watched: Watched) -> None:
    picture = watched.ask("/v1/images/generations", PICTURE, 2)
    server, stages = watched.spans(2, 4)
    assert server.name == "generate_content shapes"
    check_stages(server, stages, ["queue", "encode", "denoise"])
    said = attributes(server)
    nfe = picture.json()["usage"]["nfe"]
    assert said["gen_ai.output.type"] == "image" and said["stride.nfe"] == nfe > 0 and said["stride.procedure"] == "euler"
    assert watched.line(picture.headers["x-request-id"])["nfe"] == nfe

    watched.ask("/v1/generate", CANVAS, 3)
    server, stages = watched.spans(3, 4)
    check_stages(server, stages, ["queue", "prefill", "decode"])
    assert attributes(server)["stride.procedure"] == "block_diffusion"

    watched.ask("/v1/chat/completions", CHAT, 4)
    server, stages = watched.spans(4, 7)
    assert server.name == "chat shakespeare" and attributes(server)["gen_ai.request.choice.count"] == 2
    assert attributes(server)["gen_ai.request.stream"] is True and attributes(server)["gen_ai.usage.output_tokens"] == 12
    for output in (0, 1):
        own = [stage for stage in stages if attributes(stage)["stride.output"] == output]
        check_stages(server, own, ["queue", "prefill", "decode"])


def test_errors_are_told_by_line_and_span_and_mark_it_where_the_server_is_at_fault(watched: Watched) -> None:
    bad = watched.ask("/v1/completions", TEXT | {"temperature": -1}, 5)
    server, _ = watched.spans(5, 1)
    assert bad.status_code == 400 and attributes(server)["error.type"] == "invalid_value"
    assert server.status.code == Status.STATUS_CODE_UNSET and server.name == "POST /v1/completions"
    line = watched.line(bad.headers["x-request-id"])
    assert line["outcome"] == "error" and line["code"] == "invalid_value" and "model" not in line

    lost = watched.ask("/v1/completions", TEXT | {"deadline_ms": 0.001}, 6)
    server, _ = watched.spans(6, 1)
    assert lost.status_code == 504 and server.status.code == Status.STATUS_CODE_ERROR
    assert server.status.message == attributes(server)["error.type"] == "deadline_exceeded"
    assert watched.line(lost.headers["x-request-id"])["level"] == "warning"

    with httpx.stream("POST", watched.url + "/v1/generate", json={**LONG, "stream": True}, timeout=100) as left:
        next(left.iter_lines())
    line = watched.line(left.headers["x-request-id"])
    assert line["outcome"] == "cancelled" and line["status"] == 200 and line["generated_tokens"] < 1900


def test_ids_of_clients_are_kept_where_they_can_be_and_told_apart_while_both_are_there(watched: Watched) -> None:
    for given in ("", "a/b", "a b", "x" * 129, "ü", 'a"'):
        made = httpx.get(watched.url + "/v1/models", headers={"X-Request-Id": given.encode()}).headers["x-request-id"]
        assert made.startswith("req-") and made != given
    for given in ("x" * 128, "7b9c", "a.b:c_d-e=f+g"):
        assert httpx.get(watched.url + "/v1/models", headers={"X-Request-Id": given}).headers["x-request-id"] == given
    head = {"X-Request-Id": "twice"}
    with httpx.stream("POST", watched.url + "/v1/generate", json={**LONG, "stream": True}, headers=head, timeout=100) as first:
        lines = first.iter_lines()
        next(lines)
        second = httpx.post(watched.url + "/v1/completions", json=TEXT, headers=head, timeout=100)
        other = second.headers["x-request-id"]
        assert first.headers["x-request-id"] == "twice" and other.startswith("twice-") and second.status_code == 200
        assert httpx.delete(f"{watched.url}/v1/requests/twice").status_code == 200
        assert "cancelled" in "".join(lines)
    assert watched.line("twice")["outcome"] == "cancelled" and watched.line(other)["outcome"] == "length"
    watched.until(watched.is_idle)
    again = httpx.post(watched.url + "/v1/completions", json=TEXT, headers=head, timeout=100)
    assert again.headers["x-request-id"] == "twice"


def test_every_line_of_both_processes_is_json_and_holds_no_prompt(watched: Watched) -> None:
    lines = watched.lines()
    assert {line["process"] for line in lines} == {"api", "engine"}
    assert SECRET not in watched.path.read_text()
    assert not any(SECRET in str(attributes(span)) for span in watched.collector.spans)
    assert watched.collector.resources[0]["service.name"] == "stride"
    health = [line for line in lines if line["message"] == "GET /health/ready"]
    assert health and {line["level"] for line in health} == {"debug"}


def test_a_collector_that_is_away_fails_no_request_and_holds_up_no_end(tmp_path: Path) -> None:
    flags = ("--model", "shakespeare", "--otlp-endpoint", "http://127.0.0.1:9")
    server = Server(tmp_path / "log", *flags, ready_seconds=100)
    for _ in range(3):
        assert server.post("/v1/completions", TEXT).status_code == 200
    assert server.stop() == 0
    assert "stride.request: POST /v1/completions" in (tmp_path / "log").read_text()


def test_trace_headers_that_do_not_parse_are_no_lines_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector()
    tracing = Tracing(collector.url)
    parent = f"00-{1:032x}-{PARENT}-01"

    async def record() -> None:
        task = asyncio.current_task()
        assert task is not None
        bad = [{"traceparent": "0" * 5000}, {"traceparent": parent, "tracestate": "a=1,A B"}]
        bad += [{"traceparent": parent, "tracestate": ",".join(f"k{i}={'v' * size}" for i in range(40))} for size in (1, 99)]
        for trace in bad:
            tracing.record(Call("id", "POST", "/v1/generate", 0.0, task, lambda _: None, trace, status=200, answered=1.0))

    asyncio.run(record())
    tracing.close(10)
    collector.stop()
    assert len(collector.spans) == 4 and not caplog.records


def test_tracing_without_its_extra_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None\n"
        "from service.cli import main; sys.exit(main(['serve', '--otlp-endpoint', 'http://127.0.0.1:9']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and "stride[tracing]" in ended.stderr and "Traceback" not in ended.stderr
