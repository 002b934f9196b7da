"""What every request passes first: an id and its time, the API key, whether requests are taken, a limit on its body."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from contextlib import nullcontext

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.call import Call
from service.api.drain import Drain, ending, refusal
from service.api.errors import ApiError, defect
from service.api.in_flight import InFlight
from service.settings import Settings

OPEN = ("/health", "/metrics", "/static/")
PAGES = ("/", "/docs")
"""Beginnings of paths that need no key, and pages that do not: they ask for it and send it on."""
TRACE_HEADERS = (b"traceparent", b"tracestate")


class Border:
    """ASGI middleware. The id is the client's `X-Request-Id` where that can be one, and is sent as such. `on_over` is told of
    every call when all of it is over, `refused` every status of an error below /v1 when it is sent."""

    def __init__(
        self, app: ASGIApp, settings: Settings, in_flight: InFlight, drain: Drain, on_over: Callable[[Call], None],
        refused: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._app = app
        self._settings = settings
        self._in_flight = in_flight
        self._drain = drain
        self._on_over = on_over
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = self._call(scope)
        scope.setdefault("state", {}).update(id=call.id, arrived=call.arrived, call=call)

        async def named_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._begin_answer(call, message)
            await send(message)

        try:
            refused = self._refusal(call, scope)
            if refused is not None:
                await refused.response()(scope, receive, named_send)
            else:
                with self._in_flight.held(call) if call.works else nullcontext():
                    await self._answered(call, scope, receive, named_send)
        except Exception:
            # Answered here, as every other request; whoever logs it is outside of this.
            if call.status is None:
                await defect().response()(scope, receive, named_send)
            call.code = defect().code
            raise
        finally:
            route = scope.get("route")
            call.route = getattr(route, "path", None)
            call.answer_ended()

    def _call(self, scope: Scope) -> Call:
        headers = dict(scope["headers"])
        task = asyncio.current_task()
        assert task is not None
        trace = {name.decode(): headers[name].decode("latin-1") for name in TRACE_HEADERS if name in headers}
        own = self._in_flight.name(headers.get(b"x-request-id"))
        works = scope["method"] == "POST"
        return Call(own, scope["method"], scope["path"], time.monotonic(), task, self._over, trace, works)

    def _over(self, call: Call) -> None:
        self._in_flight.forget(call.id)
        self._on_over(call)

    def _begin_answer(self, call: Call, message: Message) -> None:
        headers = message.setdefault("headers", [])
        call.status = message["status"]
        call.streamed = any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
        headers.append((b"x-request-id", call.id.encode()))
        if call.status >= 400 and call.path.startswith("/v1/"):
            self._refused(call.status)
        if self._drain.begun:
            headers.append((b"connection", b"close"))

    def _refusal(self, call: Call, scope: Scope) -> ApiError | None:
        """Why it goes no further, seen from its head."""
        headers = dict(scope["headers"])
        key = self._settings.api_key
        if key is not None and scope["path"] not in PAGES and not scope["path"].startswith(OPEN):
            scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(secret.strip(), key.encode()):
                return ApiError(401, "missing or wrong API key: send Authorization: Bearer KEY", None, "invalid_api_key")
        if call.works and self._drain.begun:
            return refusal()
        length = headers.get(b"content-length", b"0")
        limit = self._limit(scope)
        if not length.isdigit() or int(length) > limit:
            return ApiError(413, f"the body is larger than {limit} bytes", None, "body_too_large")
        return None

    def _limit(self, scope: Scope) -> int:
        uploads = dict(scope["headers"]).get(b"content-type", b"").startswith(b"multipart/form-data")
        return self._settings.max_upload_bytes if uploads else self._settings.max_body_bytes

    async def _answered(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        limit, received = self._limit(scope), 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise HTTPException(413, f"the body is larger than {limit} bytes")
            return message

        try:
            await self._app(scope, limited_receive, send)
        except asyncio.CancelledError:
            if not call.cut or call.status is not None:
                raise
            call.task.uncancel()
            await ending().response()(scope, receive, send)
