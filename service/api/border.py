"""What every request passes first: an id and its time, a limit on its body, the API key."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import ApiError
from service.settings import Settings

OPEN = ("/health", "/metrics", "/static/")
"""Beginnings of paths that need no key; nor does the playground at `/`, which asks for it and sends it on."""


class Border:
    """ASGI middleware. The id is sent as `X-Request-Id`; `refused` is told every status of an error below /v1."""

    def __init__(self, app: ASGIApp, settings: Settings, refused: Callable[[int], None]) -> None:
        self._app = app
        self._settings = settings
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        own = f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {}).update(id=own, arrived=time.monotonic())

        async def named_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", []).append((b"x-request-id", own.encode()))
                if message["status"] >= 400 and scope["path"].startswith("/v1/"):
                    self._refused(message["status"])
            await send(message)

        key = self._settings.api_key
        if key is not None and scope["path"] != "/" and not scope["path"].startswith(OPEN):
            given = headers.get(b"authorization", b"")
            scheme, _, secret = given.partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(secret.strip(), key.encode()):
                error = ApiError(401, "missing or wrong API key: send Authorization: Bearer KEY", None, "invalid_api_key")
                await error.response()(scope, receive, named_send)
                return
        uploads = headers.get(b"content-type", b"").startswith(b"multipart/form-data")
        limit = self._settings.max_upload_bytes if uploads else self._settings.max_body_bytes
        too_large = ApiError(413, f"the body is larger than {limit} bytes", None, "body_too_large").response()
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            await too_large(scope, receive, named_send)
            return
        received = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise HTTPException(413, f"the body is larger than {limit} bytes")
            return message

        await self._app(scope, limited_receive, named_send)
