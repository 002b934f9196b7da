"""What the routes share: settings, engine client, metrics, and the codecs of the models."""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from service.api.errors import ApiError
from service.api.text import TextCodec
from service.engine.client import EngineClient, EngineUnavailable
from service.engine.messages import ModelCard
from service.metrics import Metrics
from service.settings import Settings


@dataclass
class Service:
    settings: Settings
    client: EngineClient
    metrics: Metrics
    running: dict[str, list[str]] = field(default_factory=dict)

    def card(self, name: str, kind: str | None = None) -> ModelCard:
        """Raises EngineUnavailable before the models are known, ApiError 404 or 400 for a wrong one."""
        if not self.client.models:
            raise EngineUnavailable("the models are still being loaded")
        card = self.client.models.get(name)
        if card is None:
            known = ", ".join(self.client.models)
            raise ApiError(404, f"no model is called {name!r}; served: {known}", "model", "model_not_found")
        if kind is not None and card.kind != kind:
            raise ApiError(400, f"{name} makes {card.kind}, this route makes {kind}", "model", "wrong_kind")
        return card

    @staticmethod
    @functools.cache
    def codec(folder: str) -> TextCodec:
        return TextCodec(folder)

    def seed(self, given: int | None) -> int:
        return secrets.randbits(63) if given is None else given


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]
