"""Every error in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from service.api.call import Call
from service.engine.client import EngineUnavailable, QueueFull
from service.engine.messages import Failed
from service.engine.validation import InvalidField

log = logging.getLogger("stride.api")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """What every status of 400 and above carries."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "Bad input; `param` names the field",
        401: "Missing or wrong API key",
        404: "Unknown model",
        413: "The body is too large",
        500: "The model's output for this request is not finite, or its forward failed",
        429: "The queue is full; see `Retry-After`",
        503: "The engine is away; see `Retry-After`",
        504: "The deadline passed in the queue",
    }.items()
}


class ApiError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @classmethod
    def from_failure(cls, failed: Failed) -> ApiError:
        return cls(failed.status, failed.message, failed.param, failed.code)

    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return ErrorResponse(self, {"Retry-After": "1"} if self.status in (429, 503) else {})


class ErrorResponse(JSONResponse):
    """Tells the call that it answers what its error was."""

    def __init__(self, error: ApiError, headers: Mapping[str, str]) -> None:
        super().__init__(error.body(), error.status, headers)
        self._code = error.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call | None = scope.get("state", {}).get("call")
        if call is not None:
            call.code = self._code
        await super().__call__(scope, receive, send)


def defect() -> ApiError:
    return ApiError(500, "an unexpected error; the server's log has the details", None, "internal_error")


def not_supported(param: str, instead: str = "") -> ApiError:
    return ApiError(400, f"{param} is not supported{'; ' + instead if instead else ''}", param, "not_supported")


def install_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(InvalidField)
    async def invalid_field(_: Request, error: InvalidField) -> JSONResponse:
        return ApiError(400, str(error), error.param, "invalid_value").response()

    @app.exception_handler(EngineUnavailable)
    async def unavailable(_: Request, error: EngineUnavailable) -> JSONResponse:
        return ApiError(503, str(error), None, error.code).response()

    @app.exception_handler(QueueFull)
    async def queue_full(_: Request, error: QueueFull) -> JSONResponse:
        return ApiError(429, f"the queue is full: {error}", None, "queue_full").response()

    @app.exception_handler(RequestValidationError)
    async def validation(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        first = errors[0]["loc"][:2]
        # A union reports a problem of each member: the one that got furthest, and was of the right type, is what was meant.
        problem = max(
            (e for e in errors if e["loc"][:2] == first), key=lambda e: (len(e["loc"]), not e["type"].endswith("_type"))
        )
        if problem["type"] in ("json_invalid", "json_type"):
            return ApiError(400, f"the body is not JSON: {problem['msg']}", None, "invalid_json").response()
        if isinstance(problem.get("input"), bytes):
            return ApiError(
                400, "the body must be JSON, sent with Content-Type: application/json", None, "invalid_json"
            ).response()
        unknown = problem["type"] == "extra_forbidden"
        names = _names(problem["loc"], error.body, problem["type"] == "missing")
        given = _shown(problem.get("input"))
        code = "missing_field" if problem["type"] == "missing" else "invalid_value"
        if unknown:
            code, given = "unknown_field", ""
        said = problem["type"] not in ("model_type", "model_attributes_type")
        what = problem["msg"].removeprefix("Value error, ") if said else "Input should be an object"
        message = f"{'.'.join(names) or 'the body'}: {what}{given if code == 'invalid_value' else ''}"
        return ApiError(400, message, ".".join(names) or None, code).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        code = {400: "invalid_json", 404: "route_not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(
            error.status_code
        )
        response = ApiError(error.status_code, message, None, code).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        log.exception("a defect: unhandled %s", type(error).__name__, exc_info=error)
        return defect().response()


def _names(place: tuple[str | int, ...], body: Any, missing: bool) -> list[str]:
    """The client's names in the place of an error: pydantic puts members of unions between them, which the body lacks."""
    names: list[str] = []
    value: Any = body
    for i, part in enumerate(place[1:] if place[0] in ("body", "query", "path") else place, start=1):
        if isinstance(part, int) if isinstance(value, list) else isinstance(value, dict) and part in value:
            value = value[part]
            names.append(str(part))
        elif missing and i == len(place) - 1:
            names.append(str(part))
    return names


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value[:80] if isinstance(value, str | list) else value)
    except (TypeError, ValueError, RecursionError):
        text = f"{value!r:.80}"
    return f" (given: {text if len(text) <= 80 else text[:77] + '...'})"
