"""What the border tells of requests, whatever they are and however they end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.api.app import create_app
from service.api.border import Border
from service.api.call import Call
from service.api.drain import Drain
from service.api.in_flight import InFlight
from service.api.request_log import log_call
from service.api.server import DrainingServer
from service.logs import HumanFormatter
from service.settings import Settings

SIZE = 48 << 20


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("a defect")


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(SIZE).encode())]})
    await send({"type": "http.response.body", "body": b"x" * SIZE})


def ask(method: str, path: str) -> tuple[list[Call], list[int]]:
    """The calls that were told to be over, and the errors that were counted, of one that meets a defect."""
    calls: list[Call] = []
    refused: list[int] = []
    in_flight = InFlight()
    border = Border(
        broken, Settings.model_validate({}), in_flight, Drain(in_flight, lambda: None, 1), calls.append, refused.append
    )

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(border), base_url="http://stride") as client:
            with pytest.raises(RuntimeError):
                await client.request(method, path)

    asyncio.run(run())
    return calls, refused


def test_a_defect_is_counted_as_an_error_of_the_api() -> None:
    calls, refused = ask("POST", "/v1/generate")
    assert refused == [500] and calls[0].failure == (500, "internal_error")
    assert ask("GET", "/docs")[1] == []


def test_the_answer_to_a_defect_carries_the_requests_id() -> None:
    app = create_app(Settings.model_validate({}))
    app.router.routes.clear()
    app.mount("/v1", broken)

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://stride") as client:
            return await client.post("/v1/generate", headers={"X-Request-Id": "mine"})

    answer = asyncio.run(run())
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error"
    assert answer.headers.get_list("x-request-id") == ["mine"]


def test_no_address_and_no_method_makes_a_line_of_its_own_or_a_long_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stride.request")
    for method, path in (("GET", "/x%0a2026-01-01 INFO status=200%1b[31m"), ("GET", "/" + "%e2%80%a8" * 500), ("A" * 5000, "/")):
        log_call(ask(method, path)[0][0])
    lines = [HumanFormatter().format(record) for record in caplog.records]
    assert len(lines) == 3 and all(line.isprintable() and len(line) < 500 for line in lines), lines
    assert "GET /x%0A2026" in lines[0]


def test_an_answer_that_a_slow_client_has_not_read_yet_is_sent_before_the_server_ends() -> None:
    async def run() -> bool:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
            config = uvicorn.Config(large, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
            drain = Drain(InFlight(), lambda: None, 60)
            server = DrainingServer(config, drain.run, drain.break_off)
            serving = asyncio.create_task(server.serve([listening]))
            while not server.started:
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: stride\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            server.handle_exit(signal.SIGTERM, None)
            # More than the seconds that uvicorn gives connections.
            await asyncio.sleep(2)
            assert not serving.done(), "what was not sent yet would end with the process"
            await reader.readexactly(SIZE)
            await serving
            writer.close()
            return server.unsent()

    assert asyncio.run(run()) is False
