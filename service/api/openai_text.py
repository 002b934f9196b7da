"""POST /v1/completions and /v1/chat/completions, as OpenAI's clients expect them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from service.api import sse
from service.api.errors import RESPONSES, ApiError, not_supported
from service.api.preparing import check_n, prompt_tokens, text_work
from service.api.running import Job, total, unless_gone
from service.api.schemas import ChatBody, CompletionBody, TextFields
from service.api.service_state import Service, ServiceDep
from service.api.text_output import TextOutput
from service.engine.messages import Done, TextWork, Tokens
from service.engine.validation import procedure_parameters

router = APIRouter(tags=["OpenAI"], responses=RESPONSES)


@dataclass
class Exchange:
    """One request in OpenAI's words: how its chunks and its whole answer look."""

    job: Job
    body: TextFields
    outputs: list[TextOutput]
    chat: bool
    prefix: str
    created: int

    def envelope(self, chunk: bool, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion" + (".chunk" if chunk else "") if self.chat else "text_completion"
        return {
            "id": self.job.id, "object": kind, "created": self.created, "model": self.body.model, "choices": choices,
        }  # fmt: skip

    def usage(self) -> dict[str, Any]:
        counts = total([output.done.usage for output in self.outputs if output.done is not None])
        prompt, generated = counts.get("prompt_tokens", 0), counts.get("generated_tokens", 0)
        return {
            **counts, "prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": counts.get("cached_tokens", 0)},
        }  # fmt: skip

    def chunk(self, index: int, text: str, tokens: list[int], reason: str | None, role: bool = False) -> str:
        choice: dict[str, Any] = {"index": index, "finish_reason": reason, "logprobs": None}
        if self.chat:
            choice["delta"] = ({"role": "assistant", "content": ""} if role else {}) | ({"content": text} if text else {})
        else:
            choice["text"] = text
        if self.body.return_token_ids:
            choice["token_ids"] = tokens
        return sse.event(self.envelope(True, [choice]))

    def answer(self) -> dict[str, Any]:
        choices = []
        for index, output in enumerate(self.outputs):
            choice: dict[str, Any] = {"index": index, "finish_reason": output.finish_reason, "logprobs": None}
            if self.chat:
                choice["message"] = {"role": "assistant", "content": output.text, "refusal": None}
            else:
                choice["text"] = self.prefix + output.text
            if self.body.return_token_ids:
                choice["token_ids"] = output.token_ids
            choices.append(choice)
        return {**self.envelope(False, choices), "usage": self.usage()}


@router.post("/v1/completions", summary="Continue a text")
async def completions(body: CompletionBody, request: Request, service: ServiceDep) -> Response:
    """OpenAI's completions, with vLLM's names for further sampling parameters and Stride's `procedure`."""
    card = service.card(body.model, "text")
    tokens = prompt_tokens(service, card, body.prompt)
    work = text_work(card, body, tokens, body.max_tokens, "max_tokens")
    prefix = service.codec(card.folder).decode(tokens) if body.echo else ""
    return await _exchange(service, request, body, work, False, prefix)


@router.post("/v1/chat/completions", summary="Answer a conversation")
async def chat_completions(body: ChatBody, request: Request, service: ServiceDep) -> Response:
    """OpenAI's chat completions; the conversation goes through the model's own chat template."""
    card = service.card(body.model, "text")
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise ApiError(400, "max_tokens and max_completion_tokens differ; give one", "max_completion_tokens", "invalid_value")
    prompt = service.codec(card.folder).render([m.flat() for m in body.messages], body.chat_template_kwargs or {})
    tokens = prompt_tokens(service, card, prompt, "messages")
    param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    work = text_work(card, body, tokens, body.max_completion_tokens or body.max_tokens, param)
    return await _exchange(service, request, body, work, True, "")


async def _exchange(service: Service, request: Request, body: TextFields, work: TextWork, chat: bool, prefix: str) -> Response:
    if (field := body.unsupported()) is not None:
        raise not_supported(field)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options", "invalid_value")
    check_n(service, body.n)
    card = service.card(body.model)
    procedure, parameters = procedure_parameters(card, body.choice())
    job = Job(service, request.state.id, card, procedure, parameters)
    job.start([work] * body.n, service.seed(body.seed), body.priority, body.deadline_ms)
    codec = service.codec(card.folder)
    outputs = [TextOutput(job, i, codec, body) for i in range(body.n)]
    exchange = Exchange(job, body, outputs, chat, prefix, int(time.time()))
    if body.stream:
        return sse.stream(_chunks(exchange))
    return JSONResponse(await unless_gone(request, job, _whole(exchange)))


async def _whole(exchange: Exchange) -> dict[str, Any]:
    async for item in exchange.job.events():
        if item is not None and isinstance(item[1], Tokens | Done):
            exchange.outputs[item[0]].feed(item[1])
    return exchange.answer()


async def _chunks(exchange: Exchange) -> AsyncIterator[str]:
    job = exchange.job
    try:
        for index in range(len(exchange.outputs)):
            if exchange.chat:
                yield exchange.chunk(index, "", [], None, role=True)
            elif exchange.prefix:
                yield exchange.chunk(index, exchange.prefix, [], None)
        async for item in job.events():
            if item is None:
                yield sse.KEEP_ALIVE
                continue
            index, event = item
            if not isinstance(event, Tokens | Done):
                continue
            output = exchange.outputs[index]
            text, tokens = output.feed(event)
            if text or (tokens and exchange.body.return_token_ids):
                yield exchange.chunk(index, text, tokens, None)
            if isinstance(event, Done):
                yield exchange.chunk(index, "", [], output.finish_reason)
        options = exchange.body.stream_options
        if options is not None and options.include_usage:
            yield sse.event({**exchange.envelope(True, []), "usage": exchange.usage()})
        yield sse.event("[DONE]")
    except ApiError as error:
        yield sse.event(error.body())
    finally:
        job.cancel()
