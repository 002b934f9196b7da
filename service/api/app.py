"""The FastAPI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service import __version__
from service.api import generate, images, openai_text, operations, playground
from service.api.border import Border
from service.api.errors import install_handlers
from service.api.service_state import Service
from service.engine.client import EngineClient
from service.metrics import Metrics
from service.settings import Settings

DESCRIPTION = """One server for every kind of generator. A token step and a refinement step of a picture are the same
kind of work for one scheduler. The OpenAI routes take the clients you have; `/v1/generate` shows all that happens."""


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document without FastAPI's 422: what does not validate is a 400 in OpenAI's shape here."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for ways in schema["paths"].values():
            for way in ways.values():
                way["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema


def create_app(settings: Settings, give_up: Callable[[], None] = lambda: None) -> FastAPI:
    """The application; its lifespan starts and stops the engine process. `give_up` is called when no engine can start."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        client = EngineClient(settings, metrics.observe, give_up, lambda cards: service.take_models(cards))
        service = app.state.service = Service(settings, client, metrics)
        await client.start()
        yield
        service.close()
        await client.stop()

    app = FastAPI(title="Stride", version=__version__, description=DESCRIPTION, lifespan=lifespan)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    app.add_middleware(Border, settings=settings, refused=metrics.refused)
    install_handlers(app)
    for family in (openai_text, images, generate, operations, playground):
        app.include_router(family.router)
    return app
