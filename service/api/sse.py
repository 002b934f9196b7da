"""Server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

KEEP_ALIVE = ": keep-alive\n\n"


DESCRIBED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer as JSON, or with `stream: true` as server-sent events",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}
"""What a route that can stream says of its answer in the OpenAPI document."""


def event(data: Any, name: str | None = None) -> str:
    """One event; a data line of JSON holds no line breaks."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n"


def stream(content: AsyncIterator[str]) -> StreamingResponse:
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(content, media_type="text/event-stream", headers=headers)
