"""What is served, tokenisation, cancelling, health and metrics."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from service.api.drain import refusal
from service.api.errors import RESPONSES, ApiError
from service.api.preparing import beside_the_loop
from service.api.schemas import DetokenizeBody, TokenizeBody
from service.api.service_state import Service, ServiceDep
from service.engine.messages import ModelCard
from service.engine.validation import InvalidField

router = APIRouter()


def _entry(card: ModelCard) -> dict[str, Any]:
    fields = msgspec.to_builtins(card)
    for private in ("folder", "name"):
        fields.pop(private)
    fields["sizes"] = [] if card.sizes is None else [f"{width}x{height}" for width, height in card.sizes.listed]
    fields["size_rule"] = None if card.sizes is None else card.sizes.describe()
    return {"id": card.name, "object": "model", "created": 0, "owned_by": "stride", **fields}


@router.get("/v1/models", tags=["Catalogue"], responses=RESPONSES, summary="The models that are served")
async def models(service: ServiceDep) -> dict[str, Any]:
    return {"object": "list", "data": [_entry(card) for card in service.client.models.values()]}


@router.get("/v1/models/{name}", tags=["Catalogue"], responses=RESPONSES, summary="One model")
async def model(name: str, service: ServiceDep) -> dict[str, Any]:
    return _entry(service.card(name))


@router.get("/v1/procedures", tags=["Catalogue"], summary="Every procedure, its parameters, and the models it runs on")
async def procedures(service: ServiceDep) -> dict[str, Any]:
    cards = service.client.models.values()
    return {
        "object": "list",
        "data": [
            {
                **msgspec.to_builtins(p),
                "models": [card.name for card in cards if p.name in card.procedures],
                "measured": [{"model": card.name, **row} for card in cards for row in _measured(card, p.name)],
            }
            for p in service.client.procedures()
        ],
    }


def _measured(card: ModelCard, procedure: str) -> list[dict[str, Any]]:
    """What is known of this procedure's quality with this model, cheapest first."""
    return [msgspec.to_builtins(row) for row in card.quality.runnable([procedure])] if card.quality is not None else []


def _of_tokens(service: Service, model: str) -> ModelCard:
    """Raises ApiError 400 for a pipeline, whose several tokenisers are its own matter."""
    card = service.card(model)
    if not card.vocab_size:
        raise ApiError(400, f"{model} takes texts as they are: it has no tokens to tell", "model", "wrong_kind")
    return card


@router.post("/v1/tokenize", tags=["Tokens"], responses=RESPONSES, summary="Text to token ids")
async def tokenize(body: TokenizeBody, service: ServiceDep) -> Response:
    card = _of_tokens(service, body.model)

    def answer() -> bytes:
        tokens = service.codec(card.folder).encode(body.prompt)
        return msgspec.json.encode({"tokens": tokens, "count": len(tokens), "max_model_len": card.max_model_len})

    return Response(await beside_the_loop(len(body.prompt), answer), media_type="application/json")


@router.post("/v1/detokenize", tags=["Tokens"], responses=RESPONSES, summary="Token ids to text")
async def detokenize(body: DetokenizeBody, service: ServiceDep) -> dict[str, Any]:
    card = _of_tokens(service, body.model)
    beyond = next((token for token in body.tokens if token >= card.vocab_size), None)
    if beyond is not None:
        raise InvalidField("tokens", f"token {beyond} is outside the vocabulary of {card.name}")
    codec = service.codec(card.folder)
    return {"prompt": await beside_the_loop(len(body.tokens), lambda: codec.decode(body.tokens))}


@router.delete("/v1/requests/{request_id:path}", tags=["Stride"], responses=RESPONSES, summary="Cancel a request")
async def cancel(request_id: str, service: ServiceDep) -> dict[str, Any]:
    """The id is the answer's `id` (and the `X-Request-Id` header), or `<id>/<index>` for one output."""
    names = service.running.get(request_id, [request_id])
    if not any([service.client.finish(name) for name in names]):
        raise ApiError(404, f"no request {request_id!r} is running", "id", "request_not_found")
    return {"id": request_id, "cancelled": True}


@router.get("/health/live", tags=["Operations"], summary="The front end is up")
async def live() -> dict[str, str]:
    return {"status": "live"}


@router.get("/health/ready", tags=["Operations"], summary="The engine answers and the models are loaded")
@router.get("/health", tags=["Operations"], summary="The same as /health/ready")
async def ready(service: ServiceDep) -> JSONResponse:
    if service.drain.begun:
        return refusal().response()
    if service.client.answers:
        return JSONResponse({"status": "ready", "models": list(service.client.models)})
    reason = service.client.failure or ("the engine does not answer" if service.client.ready else "the engine is starting")
    error = ApiError(503, reason, None, "engine_unavailable")
    return error.response()


@router.get("/metrics", tags=["Operations"], summary="Prometheus metrics", response_class=Response)
async def metrics(service: ServiceDep) -> Response:
    service.metrics.engine(service.client.answers, service.client.restarts, service.client.room)
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
