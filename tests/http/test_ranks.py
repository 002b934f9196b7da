"""A server whose model is divided among processes, when one of them is killed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.checkpoints import write_decoder
from tests.http.server import Server

pytestmark = pytest.mark.timeout(240)

PROCEDURE = {"name": "autoregressive"}
BODY = {"model": "text", "input_tokens": [70, 71, 72], "max_tokens": 12, "ignore_eos": True, "seed": 5, "procedure": PROCEDURE}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks") / "log"


@pytest.fixture(scope="module")
def server(log: Path) -> Iterator[Server]:
    text = write_decoder(log.parent / "text")
    server = Server(log, "--model", f"text={text},tensor_parallel=2", "--model", f"whole={text}", ready_seconds=120)
    yield server
    if server.process.poll() is None:
        server.stop()


def ranks(server: Server) -> list[int]:
    """Pids of the processes beside the engine's."""
    children = Path(f"/proc/{server.engine_pid()}/task/{server.engine_pid()}/children").read_text().split()
    return [int(pid) for pid in children if b"rank_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def tokens(server: Server, model: str = "text") -> list[int]:
    answer = server.post("/v1/generate", {**BODY, "model": model})
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"][0]["token_ids"]


def test_it_answers_as_the_whole_model_does_and_says_on_how_many_ranks(server: Server, log: Path) -> None:
    assert tokens(server) == tokens(server, "whole")
    assert "run by torch on 2 ranks" in log.read_text()


def test_a_rank_that_is_killed_ends_the_engine_which_starts_again(server: Server, log: Path) -> None:
    before, (rank,) = tokens(server), ranks(server)
    statuses: list[int] = []

    def ask() -> None:
        body = {**BODY, "max_tokens": 480}
        statuses.append(httpx.post(server.url + "/v1/generate", json=body, timeout=60).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    server.until(lambda: server.metric("stride_requests_running", model="text") == 1)
    os.kill(rank, signal.SIGKILL)
    asking.join(30)
    assert statuses == [503]
    server.until(lambda: server.metric("stride_engine_restarts_total") == 1)
    assert "text: rank 1 ended with code -9; an engine without one of its ranks is of no use and ends" in log.read_text()
    server.wait_ready(120)
    assert tokens(server) == before and ranks(server) != [rank]


def test_ranks_end_with_an_engine_that_is_killed(server: Server) -> None:
    (rank,) = ranks(server)
    server.kill_engine()
    server.until(lambda: gone(rank))
