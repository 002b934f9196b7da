"""The FastAPI application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service import __version__
from service.api import drain as draining
from service.api import generate, images, openai_text, operations, playground
from service.api.border import Border
from service.api.call import Call
from service.api.drain import Drain
from service.api.errors import install_handlers
from service.api.in_flight import InFlight
from service.api.request_log import log_call
from service.api.service_state import Service
from service.engine.client import EngineClient
from service.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from service.api.tracing import Tracing

log = logging.getLogger("stride.api")
LAST_SPANS_SECONDS = 3.0

DESCRIPTION = """One server for every kind of generator. A token step and a refinement step of a picture are the same
kind of work for one scheduler. The OpenAI routes take the clients you have; `/v1/generate` shows all that happens."""


class TracingUnavailable(Exception):
    """An endpoint is configured, and what speaks to it is not installed."""


def _described(app: FastAPI, max_n: int) -> dict[str, Any]:
    """The OpenAPI document without FastAPI's 422: what does not validate is a 400 in OpenAI's shape here. Outputs of one request
    are bounded by what this server allows."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for ways in schema["paths"].values():
            for way in ways.values():
                way["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(unused, None)
        for body in schema["components"]["schemas"].values():
            for name in ("n", "best_of"):
                field = body.get("properties", {}).get(name, {})
                for one in (field, *field.get("anyOf", ())):
                    if "maximum" in one:
                        one["maximum"] = min(one["maximum"], max_n)
        app.openapi_schema = schema
    return app.openapi_schema


def _tracing(endpoint: str | None) -> Tracing | None:
    """Raises TracingUnavailable."""
    if endpoint is None:
        return None
    try:
        from service.api.tracing import Tracing
    except ModuleNotFoundError as error:
        raise TracingUnavailable(f"otlp_endpoint needs {error.name}: pip install 'stride[tracing]'") from None
    return Tracing(endpoint)


def create_app(settings: Settings, give_up: Callable[[], None] = lambda: None) -> FastAPI:
    """The application; its lifespan starts and stops the engine process. `give_up` is called when no engine can start.
    `app.state.drain` ends it gently. Raises TracingUnavailable."""
    metrics = Metrics()
    in_flight = InFlight()
    tracing = _tracing(settings.otlp_endpoint)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        client = EngineClient(settings, metrics.observe, give_up, lambda cards: service.take_models(cards))
        service = app.state.service = Service(settings, client, metrics, drain)
        await client.start()
        yield
        service.close()
        await client.stop()
        if tracing is not None:
            await asyncio.to_thread(tracing.close, LAST_SPANS_SECONDS)

    def over(call: Call) -> None:
        try:
            log_call(call, tracing.record(call) if tracing is not None and call.works else None)
        except Exception:
            log.exception("a defect: the end of a request could not be told")

    def end_all() -> None:
        service: Service = app.state.service
        service.client.end_all(draining.CODE, draining.ENDED)

    app = FastAPI(title="Stride", version=__version__, description=DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None)
    drain = app.state.drain = Drain(in_flight, end_all, settings.drain_seconds, settings.drain_notice_seconds)
    app.openapi = lambda: _described(app, settings.max_n)  # type: ignore[method-assign]
    app.add_middleware(Border, settings=settings, in_flight=in_flight, drain=drain, on_over=over, refused=metrics.refused)
    install_handlers(app)
    for family in (openai_text, images, generate, operations, playground):
        app.include_router(family.router)
    return app
