"""POST /v1/generate: every model, every procedure, all that the engine can tell."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from service.api import constraints, sse
from service.api.errors import RESPONSES, ApiError
from service.api.pictures import encoded
from service.api.preparing import beside_the_loop, check_n, image_parameters, image_work, prompt_tokens, text_work
from service.api.running import Job, output_seeds, total, unless_gone
from service.api.sampling_schemas import SamplingFields
from service.api.schemas import GenerateBody, PictureFields
from service.api.searching import start, with_score
from service.api.service_state import Service, ServiceDep
from service.api.text_output import TextOutput
from service.engine.choosing import decide
from service.engine.messages import Choice, Done, ImageWork, ModelCard, Preview, Revision, TextWork, Tokens
from service.engine.validation import InvalidField, check_next_token, procedure_parameters, refinement_rows

router = APIRouter(tags=["Stride"], responses=RESPONSES)


class Generation:
    """One /v1/generate request and what it has so far."""

    def __init__(self, service: Service, job: Job, body: GenerateBody) -> None:
        self.job = job
        prompts = job.prompts if job.card.kind == "text" else []
        self.texts = [TextOutput(job, i, service.codec(job.card.folder), body, before=each) for i, each in enumerate(prompts)]
        self._logprobs = body.logprobs is not None
        self.done: dict[int, Done] = {}

    async def answer(self) -> dict[str, Any]:
        """The object of the unstreamed answer, and of `done`."""
        outputs = []
        for index, seed in enumerate(self.job.seeds):
            done = self.done[index]
            output: dict[str, Any] = {"index": index, "seed": seed}
            if self.job.card.kind == "text":
                text = self.texts[index]
                output |= {"finish_reason": text.finish_reason, "text": text.text, "token_ids": text.token_ids}
                if self._logprobs:
                    output["logprobs"] = [{"logprob": each.own, "top": each.top} for each in text.tokenwise.logprobs if each]
            else:
                picture = await encoded(done) if done.rgb else None
                output |= {
                    "finish_reason": done.finish_reason, "image": picture, "width": done.width, "height": done.height,
                }  # fmt: skip
                output = with_score(output, done.score) | ({"procedure": done.ran} if done.ran else {})
            outputs.append(output)
        return {
            "id": self.job.id,
            "model": self.job.card.name,
            "procedure": self.done[0].ran or {"name": self.job.procedure, **self.job.parameters},
            "outputs": outputs,
            "usage": total([self.done[i].usage for i in sorted(self.done)], 0, sum(len(text.token_ids) for text in self.texts)),
        }

    async def whole(self) -> dict[str, Any]:
        async for item in self.job.events():
            if item is not None:
                self._take(*item)
        return await self.answer()

    def _take(self, index: int, event: Any) -> tuple[str, list[int]]:
        if isinstance(event, Done):
            self.done[index] = event
        if isinstance(event, Tokens | Done) and self.job.card.kind == "text":
            return self.texts[index].feed(event)
        return "", []

    async def events(self) -> AsyncIterator[str]:
        try:
            async for item in self.job.events():
                if item is None:
                    yield sse.KEEP_ALIVE
                    continue
                index, event = item
                text, tokens = self._take(index, event)
                if text or tokens:
                    yield sse.event({"index": index, "text": text, "token_ids": tokens, **self._guesses(index, event)}, "token")
                if isinstance(event, Revision):
                    canvas = self.texts[index].canvas(event)
                    if canvas is not None:
                        yield sse.event({"index": index, **canvas}, "revision")
                elif isinstance(event, Preview):
                    where = {"index": index, "step": event.step, "steps": event.steps, "t": event.t}
                    yield sse.event({**where, "image": await encoded(event)}, "preview")
            yield sse.event(await self.answer(), "done")
        except ApiError as error:
            yield sse.event(error.body(), "error")
        finally:
            self.job.cancel()

    def _guesses(self, index: int, event: object) -> dict[str, Any]:
        """Of a forward that verified guesses: how many, how many of its tokens they gave, and the beginning of its text that
        came of those."""
        if not isinstance(event, Tokens) or event.drafted is None:
            return {}
        return {"drafted": event.drafted, "accepted": event.accepted, "accepted_text": self.texts[index].accepted_text}


@router.post("/v1/generate", summary="Run any model with any procedure", responses=sse.DESCRIBED)
async def generate(body: GenerateBody, request: Request, service: ServiceDep) -> Response:
    """Streams `token`, `revision` (a provisional canvas), `preview` (a picture under refinement), `done` and `error`."""
    card = service.card(body.model)
    check_n(service, body.n)
    work = await _text(service, request, card, body) if card.kind == "text" else await _image(service, card, body)
    choices: list[Choice] = []
    if isinstance(work, TextWork):
        procedure, parameters = procedure_parameters(card, body.choice())
        form = "structured_outputs" if body.structured_outputs is not None else "response_format"
        check_next_token(procedure, work, {"logprobs": "logprobs", "grammar": form})
    else:
        hurried, negative = body.deadline_ms is not None and body.search is None, bool(body.negative_prompt)
        decision = decide(card, image_parameters(body.choice(), body), body.quality, hurried, negative)
        procedure, parameters, choices = decision.procedure, decision.parameters, decision.choices
        if body.preview_every:
            _check_previews(body, refinement_rows(card, procedure, parameters, (work.width, work.height)))
    job = Job(service, request, card, procedure, parameters)
    if isinstance(work, TextWork):
        job.start([work] * body.n, output_seeds(body.seed, 1, body.n), body.priority, body.deadline_ms)
    else:
        start(service, job, work, body, {"preview_every": body.preview_every}, choices)
    generation = Generation(service, job, body)
    if body.stream:
        return sse.stream(generation.events())
    return JSONResponse(await unless_gone(request, job, generation.whole()))


def _check_previews(body: GenerateBody, rows: int) -> None:
    if not body.stream:
        raise InvalidField("preview_every", "preview_every needs stream: true")
    if body.preview_every >= rows:
        raise InvalidField("preview_every", f"there are {rows} evaluations; preview_every must be below")


async def _text(service: Service, request: Request, card: ModelCard, body: GenerateBody) -> TextWork:
    for name in PictureFields.model_fields:
        if name in body.model_fields_set:
            raise InvalidField(name, f"{name} is for image models; {card.name} makes text")
    if body.preview_every:
        raise InvalidField("preview_every", f"preview_every is for image models; {card.name} makes text")
    if (body.prompt is None) == (body.input_tokens is None):
        raise InvalidField("prompt", "give either prompt or input_tokens")
    prompt: str | list[int] = body.prompt if body.prompt is not None else body.input_tokens or []
    param = "prompt" if body.prompt is not None else "input_tokens"
    asked = constraints.asked(body)
    grammar = ""
    if asked is not None:
        grammar = await constraints.tried(service, request, card, asked, body.deadline_ms)
    tokens = await beside_the_loop(len(prompt), lambda: prompt_tokens(service, card, prompt, param))
    codec = service.codec(card.folder)
    return text_work(card, codec, body, tokens, body.max_tokens, "max_tokens", body.stream, grammar)


async def _image(service: Service, card: ModelCard, body: GenerateBody) -> ImageWork:
    given = body.model_fields_set
    for name in ("input_tokens", "max_tokens", "logprobs", *SamplingFields.model_fields):
        if name in given:
            raise InvalidField(name, f"{name} is for text models; {card.name} makes pictures")
    if body.prompt is None:
        raise InvalidField("prompt", "prompt is missing")
    return await image_work(service, card, body.prompt, body, body.preview_every)
