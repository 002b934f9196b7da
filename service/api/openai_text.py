"""POST /v1/completions and /v1/chat/completions, as OpenAI's clients expect them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from service.api import constraints, sse
from service.api.chat_schemas import ChatBody
from service.api.echo import Echo
from service.api.errors import RESPONSES, ApiError
from service.api.exchange import ChatExchange, CompletionExchange, Exchange
from service.api.preparing import beside_the_loop, check_n, prompt_tokens, text_work
from service.api.running import Job, output_seeds, unless_gone
from service.api.schemas import CompletionBody
from service.api.service_state import Service, ServiceDep
from service.api.text import TextCodec
from service.api.text_output import TextOutput
from service.api.tooling import Tooling
from service.engine.messages import ModelCard, TextWork
from service.engine.validation import InvalidField, check_next_token, procedure_parameters

router = APIRouter(tags=["OpenAI"], responses=RESPONSES)


@router.post("/v1/completions", summary="Continue a text", responses=sse.DESCRIBED)
async def completions(body: CompletionBody, request: Request, service: ServiceDep) -> Response:
    """OpenAI's completions, with vLLM's names for further sampling parameters and Stride's `procedure`."""
    card = service.card(body.model, "text")
    codec = service.codec(card.folder)
    if body.best_of is not None:
        _check_best_of(service, body)
    if not body.max_tokens and not body.echo:
        raise InvalidField("max_tokens", "max_tokens 0 needs echo: nothing would be answered")
    prompts, several = body.prompts(), isinstance(body.prompt, list) and len(body.prompt) > 0
    if len(prompts) * body.candidates() > service.settings.max_waiting:
        raise InvalidField("prompt", f"{len(prompts)} prompts are more than this server queues ({service.settings.max_waiting})")
    _, grammar = await _form(service, request, card, body, Tooling())

    def tokenised() -> list[list[int]]:
        many = several and not isinstance(body.prompt[0], int)
        return [
            prompt_tokens(service, card, prompt, f"prompt.{i}" if many else "prompt", body.add_special_tokens)
            for i, prompt in enumerate(prompts)
        ]

    tokens = await beside_the_loop(sum(map(len, prompts)), tokenised)
    works = [
        text_work(card, codec, body, each, body.max_tokens, "max_tokens", grammar=grammar, score_prompt=body.scores())
        for each in tokens
    ]

    def echoes() -> list[Echo]:
        if body.scores():
            return [Echo.scored(codec, each) for each in tokens]
        # A text as it was given: its tokens may mean it without its special ones.
        given = [prompt if isinstance(prompt, str) else codec.decode(each) for prompt, each in zip(prompts, tokens, strict=True)]
        return [Echo(text if body.echo else "") for text in given]

    # Where the text of each token begins takes the time of many tokens.
    shown = await beside_the_loop(sum(map(len, tokens)) * (16 if body.scores() else 1), echoes)
    return await _exchange(
        service, request, body, works, Tooling(), lambda *common: CompletionExchange(*common, echoes=shown)
    )  # fmt: skip


@router.post("/v1/chat/completions", summary="Answer a conversation", responses=sse.DESCRIBED)
async def chat_completions(body: ChatBody, request: Request, service: ServiceDep) -> Response:
    """OpenAI's chat completions; the conversation goes through the model's own chat template."""
    card = service.card(body.model, "text")
    codec = service.codec(card.folder)
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise ApiError(400, "max_tokens and max_completion_tokens differ; give one", "max_completion_tokens", "invalid_value")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidField("top_logprobs", "top_logprobs needs logprobs: true")
    tooling = Tooling.of(body, codec)
    _, grammar = await _form(service, request, card, body, tooling)

    def tokenised() -> list[int]:
        return prompt_tokens(service, card, _prompt(body, codec, tooling), "messages", body.add_special_tokens)

    size = sum(len(str(message.content)) for message in body.messages) + len(str(tooling.shown))
    tokens = await beside_the_loop(size, tokenised)
    param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    work = text_work(card, codec, body, tokens, body.max_completion_tokens or body.max_tokens, param, grammar=grammar)
    return await _exchange(
        service, request, body, [work], tooling, lambda *common: ChatExchange(*common, form=tooling.form)
    )  # fmt: skip


def _prompt(body: ChatBody, codec: TextCodec, tooling: Tooling) -> str:
    messages = [message.flat(f"messages.{i}") for i, message in enumerate(body.messages)]
    if not any("developer" in source for source in codec.template.sources.values()):
        # Templates pass over roles that they do not know; OpenAI's newer name for a system message must not be lost.
        messages = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
    if body.continue_final_message and "add_generation_prompt" in body.model_fields_set and body.add_generation_prompt:
        raise InvalidField("continue_final_message", "continue_final_message contradicts add_generation_prompt")
    generation_prompt = body.add_generation_prompt and not body.continue_final_message
    return codec.template.render(
        messages, tooling.shown, body.chat_template_kwargs or {}, generation_prompt, body.continue_final_message
    )


def _check_best_of(service: Service, body: CompletionBody) -> None:
    assert body.best_of is not None
    check_n(service, body.best_of, "best_of")
    if body.best_of < body.n:
        raise InvalidField("best_of", f"best_of {body.best_of} is less than n {body.n}")
    if body.stream and body.best_of > body.n:
        raise InvalidField("best_of", "best_of above n cannot be streamed: which are best is known at the end")


async def _form(
    service: Service, request: Request, card: ModelCard, body: CompletionBody | ChatBody, tooling: Tooling
) -> tuple[str, str]:  # fmt: skip
    """The field that the output's grammar comes from, and the grammar, which stood its trial; both empty for free text."""
    asked = constraints.asked(body)
    if asked is not None and tooling.form is not None:
        raise InvalidField(asked[0], f"{asked[0]} beside tools is not supported; use tool_choice none")
    if tooling.grammar:
        constraints.refuse_beside(body, "tool_choice")
        asked = (tooling.param, tooling.grammar)
    if asked is None:
        return "", ""
    return asked[0], await constraints.tried(service, request, card, asked, body.deadline_ms)


async def _exchange(
    service: Service, request: Request, body: CompletionBody | ChatBody, works: list[TextWork], tooling: Tooling,
    build: Callable[..., Exchange],
) -> Response:  # fmt: skip
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options", "invalid_value")
    check_n(service, body.n)
    card = service.card(body.model)
    codec = service.codec(card.folder)
    procedure, parameters = procedure_parameters(card, body.choice())
    check_next_token(procedure, works[0], _fields(body))
    bytes_of = await service.token_bytes(card) if body.likeliest() is not None else bytes
    job = Job(service, request, card, procedure, parameters)
    candidates = body.candidates()
    seeds = output_seeds(body.seed, len(works), candidates)
    job.start([work for work in works for _ in range(candidates)], seeds, body.priority, body.deadline_ms)
    # An answer is a text of its own, but for one that goes on with the last message.
    goes_on = isinstance(body, CompletionBody) or body.continue_final_message
    befores = job.prompts if goes_on else [()] * len(seeds)
    outputs = [TextOutput(job, i, codec, body, tooling.marks, before) for i, before in enumerate(befores)]
    exchange = build(job, body, outputs, service.fingerprint(card), bytes_of)
    if body.stream:
        return sse.stream(exchange.chunks())
    return JSONResponse(await unless_gone(request, job, exchange.whole()))


def _fields(body: CompletionBody | ChatBody) -> dict[str, Any]:
    """Which field of this body asks for what a procedure may not be able to give."""
    ranked = isinstance(body, CompletionBody) and body.logprobs is None
    form = next((name for name in ("structured_outputs", "response_format") if getattr(body, name) is not None), "tool_choice")
    return {"logprobs": "best_of" if ranked else "logprobs", "grammar": form}
