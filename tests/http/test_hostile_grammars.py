"""Grammars written to hurt: each is a 400 that names its field, and what others ask for goes on meanwhile."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.engine.grammar_trial import CPU_SECONDS
from tests.http.server import Server

TEXT = {"model": "shakespeare", "prompt": "x", "max_tokens": 2}
# llguidance takes minutes and gigabytes for this.
STUCK = {"json": {"allOf": [{"type": "string", "pattern": f"a{i}"} for i in range(100)]}}


def chain_of_definitions(n: int) -> dict[str, Any]:
    links = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(n)}
    return {"$defs": links | {f"d{n}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def chain_of_rules(n: int) -> str:
    rules = (f'r{i}: "a" r{i + 1} | "b"' for i in range(n))
    return "\n".join(["start: r0", *rules, f'r{n}: "c"'])


def chain_of_terminals(n: int) -> str:
    terminals = (f'T{i}: "a" T{i + 1} | "b"' for i in range(n))
    return "\n".join(["start: T0", *terminals, f'T{n}: "c"'])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own: before these grammars were guarded against, they ended it."""
    server = Server(tmp_path_factory.mktemp("guarded") / "log", "--model", "shakespeare")
    yield server
    server.stop()


def ask(server: Server, form: dict[str, Any], **fields: Any) -> httpx.Response:
    return server.post("/v1/completions", {**TEXT, "structured_outputs": form, **fields})


def trial_pids(server: Server) -> set[int]:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    lines: dict[int, bytes] = {}
    for pid in children:
        with suppress(FileNotFoundError, ProcessLookupError):  # it may end while we look
            lines[int(pid)] = Path(f"/proc/{pid}/cmdline").read_bytes()
    return {pid for pid, line in lines.items() if b"grammar_trial" in line}


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("json", chain_of_definitions(2000)),
        ("grammar", chain_of_rules(5000)),
        ("grammar", chain_of_terminals(5000)),
        ("json", STUCK["json"]),
    ],
    ids=["definitions", "rules", "terminals", "intersection"],
)
def test_a_grammar_that_its_compiler_does_not_survive_is_a_400(guarded: Server, name: str, value: Any) -> None:
    before = guarded.process.pid
    for _ in range(2):
        answer = ask(guarded, {name: value})
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == f"structured_outputs.{name}"
        assert "memory" in error["message"] or "long" in error["message"], error
    assert guarded.process.poll() is None and guarded.process.pid == before
    assert ask(guarded, {"regex": "a{2}"}).status_code == 200


def test_a_grammar_that_allows_nothing_is_refused_before_it_is_queued(guarded: Server) -> None:
    submitted = guarded.metric("stride_requests_total")
    answer = ask(guarded, {"regex": r"[^\s\S]"}, stream=True)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "structured_outputs.regex"
    assert guarded.metric("stride_requests_total") == submitted


def test_a_stuck_grammar_holds_up_nobody_else(guarded: Server) -> None:
    stuck = {"json": {"allOf": [*STUCK["json"]["allOf"], {"type": "string", "pattern": "other"}]}}
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(ask(guarded, stuck)))
    thread.start()
    time.sleep(0.3)
    with httpx.Client(base_url=guarded.url, timeout=30) as other:
        assert other.get("/health").status_code == 200
        for fields in ({"structured_outputs": {"regex": "b{2}"}}, {"logprobs": 1}, {}):
            assert other.post("/v1/completions", json=TEXT | fields).status_code == 200
    assert not answers, "the stuck grammar was to be stuck meanwhile"
    thread.join()
    assert answers[0].status_code == 400


def test_a_client_that_leaves_ends_its_trial(guarded: Server) -> None:
    stuck = {"json": {"allOf": [*STUCK["json"]["allOf"], {"type": "string", "pattern": "left"}]}}
    ask(guarded, {"regex": "c"})
    (pid,) = trial_pids(guarded)
    before = ticks = cpu_ticks(pid)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(guarded.url + "/v1/completions", json=TEXT | {"structured_outputs": stuck}, timeout=0.5)
    while pid in trial_pids(guarded):
        with suppress(FileNotFoundError, ProcessLookupError):
            ticks = max(ticks, cpu_ticks(pid))
        time.sleep(0.01)
    assert ticks - before < CPU_SECONDS * os.sysconf("SC_CLK_TCK"), "it was left to reach its own limit"
    assert ask(guarded, {"regex": "d"}).status_code == 200


def test_a_grammar_that_was_tried_leaves_its_process_for_the_next(guarded: Server) -> None:
    ask(guarded, {"regex": "e"})
    before = trial_pids(guarded)
    for i in range(5):
        assert ask(guarded, {"regex": f"e{i}"}).status_code == 200
    assert trial_pids(guarded) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("choice", ["x" * 400] * 1000),
        ("grammar", 'root ::= "' + "x" * 200_000 + '"'),
        ("regex", "x" * 200_000),
        ("json", {"enum": ["x" * 200_000]}),
    ],
)
def test_the_text_of_a_grammar_has_a_limit(guarded: Server, name: str, value: Any) -> None:
    error = ask(guarded, {name: value}).json()["error"]
    assert error["param"] == f"structured_outputs.{name}" and "131072" in error["message"], json.dumps(error)


def test_a_stopped_server_leaves_no_trial_behind(tmp_path: Path) -> None:
    server = Server(tmp_path / "log", "--model", "shakespeare")
    assert ask(server, {"regex": "a"}).status_code == 200
    (pid,) = trial_pids(server)
    server.stop()
    server.until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_deadline_passes_while_a_grammar_is_tried(guarded: Server) -> None:
    before = guarded.metric("stride_deadlines_missed_total", model="shakespeare")
    stuck = {"json": {"allOf": [*STUCK["json"]["allOf"], {"type": "string", "pattern": "late"}]}}
    answer = ask(guarded, stuck, deadline_ms=200)
    error = answer.json()["error"]
    assert answer.status_code == 504 and (error["param"], error["code"]) == ("deadline_ms", "deadline_exceeded")
    assert "while structured_outputs.json was tried" in error["message"]
    assert guarded.metric("stride_deadlines_missed_total", model="shakespeare") == before + 1
    assert ask(guarded, {"regex": "[ab]c"}, deadline_ms=60_000).status_code == 200
