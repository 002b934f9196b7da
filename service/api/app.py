"""The FastAPI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service import __version__
from service.api import generate, images, openai_text, operations
from service.api.border import Border
from service.api.errors import install_handlers
from service.api.service_state import Service
from service.engine.client import EngineClient
from service.metrics import Metrics
from service.settings import Settings

DESCRIPTION = """One server for every kind of generator. A token step and a refinement step of a picture are the same
kind of work for one scheduler. The OpenAI routes take the clients you have; `/v1/generate` shows all that happens."""


def create_app(settings: Settings, give_up: Callable[[], None] = lambda: None) -> FastAPI:
    """The application; its lifespan starts and stops the engine process. `give_up` is called when no engine can start."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        client = EngineClient(settings, metrics.observe, give_up)
        app.state.service = Service(settings, client, metrics)
        await client.start()
        yield
        await client.stop()

    app = FastAPI(title="Stride", version=__version__, description=DESCRIPTION, lifespan=lifespan)
    app.add_middleware(Border, settings=settings)
    install_handlers(app)
    for family in (openai_text, images, generate, operations):
        app.include_router(family.router)
    return app
