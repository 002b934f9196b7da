"""POST /v1/images/generations and /v1/images/edits, as OpenAI's clients expect them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from service.api import sse
from service.api.edits import edit_body
from service.api.errors import RESPONSES, ApiError
from service.api.pictures import encoded
from service.api.preparing import check_n, image_parameters, image_work
from service.api.running import Job, total, unless_gone
from service.api.schemas import ImageBody
from service.api.searching import start, with_score
from service.api.service_state import Service, ServiceDep
from service.engine.choosing import decide
from service.engine.messages import Done, Preview, Usage
from service.engine.validation import InvalidField, refinement_rows

router = APIRouter(tags=["OpenAI"], responses=RESPONSES)


@router.post("/v1/images/generations", summary="Draw a picture", responses=sse.DESCRIBED)
async def generations(body: ImageBody, request: Request, service: ServiceDep) -> Response:
    """OpenAI's image generation. With `stream`, `partial_images` of the unfinished picture come before the last one:
    the model's estimate at that point of the refinement."""
    return await _answer(body, request, service)


@router.post("/v1/images/edits", summary="Change a picture, all of it or within a mask", responses=sse.DESCRIBED)
async def edits(request: Request, service: ServiceDep) -> Response:
    """OpenAI's image edits, as multipart/form-data: `image` and `mask` are files (png, jpeg, webp), and the mask is transparent
    where the picture is to change. Without a mask all of it changes, as far as `strength` says."""
    return await _answer(await edit_body(request), request, service, edit=True)


async def _answer(body: ImageBody, request: Request, service: Service, edit: bool = False) -> Response:
    card = service.card(body.model, "image")
    check_n(service, body.n)
    if body.partial_images and not body.stream:
        raise ApiError(400, "partial_images needs stream: true", "partial_images", "invalid_value")
    choice = image_parameters(body.choice(), body, body.num_inference_steps, body.guidance_scale, body.strength)
    try:
        hurried, negative = body.deadline_ms is not None and body.search is None, bool(body.negative_prompt)
        decision = decide(card, choice, body.asked_quality(), hurried, negative)
    except InvalidField as error:
        name = error.param.removeprefix("procedure.")
        theirs = {"steps": "num_inference_steps", "guidance": "guidance_scale", "strength": "strength"}.get(name)
        if theirs is None or getattr(body, theirs) is None:
            raise
        raise InvalidField(theirs, f"{theirs}: {str(error).removeprefix(f'{name}: ')}") from None
    procedure, parameters = decision.procedure, decision.parameters
    work = await image_work(service, card, body.prompt, body, 0, transparent=edit)
    if body.partial_images:
        rows = refinement_rows(card, procedure, parameters, (work.width, work.height))
        if rows <= body.partial_images:
            message = f"{rows} evaluations can give at most {rows - 1} partial images, not {body.partial_images}"
            raise ApiError(400, message, "partial_images", "invalid_value")
        work = msgspec.structs.replace(work, previews=body.partial_images)
    job = Job(service, request, card, procedure, parameters)
    start(service, job, work, body, {"partial_images": body.partial_images}, decision.choices)
    if body.stream:
        return sse.stream(_events(job, body, f"{work.width}x{work.height}", "image_edit" if edit else "image_generation"))
    return JSONResponse(await unless_gone(request, job, _whole(job, body)))


async def _whole(job: Job, body: ImageBody) -> dict[str, Any]:
    done: dict[int, Done] = {}
    async for item in job.events():
        if item is not None and isinstance(item[1], Done):
            done[item[0]] = item[1]
    if not all(event.rgb for event in done.values()):
        raise _cancelled()
    data = [
        with_score({"b64_json": await encoded(done[i], body.output_format), "seed": job.seeds[i]}, done[i].score)
        | _ran(job, done[i], body)
        for i in sorted(done)
    ]
    return {
        "created": int(time.time()),
        "data": data,
        "output_format": body.output_format,
        "size": f"{done[0].width}x{done[0].height}",
        "quality": body.quality or "auto",
        "usage": _usage([done[i].usage for i in sorted(done)]),
    }


def _ran(job: Job, done: Done, body: ImageBody) -> dict[str, Any]:
    """The procedure that made a picture, where the service chose it."""
    if not done.ran and body.asked_quality() is None:
        return {}
    return {"procedure": done.ran or {"name": job.procedure, **job.parameters}}


def _cancelled() -> ApiError:
    return ApiError(499, "the request was cancelled", None, "cancelled")


def _usage(usages: list[Usage]) -> dict[str, Any]:
    """OpenAI's names are there for its clients: no tokens are produced by refining a picture."""
    return {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, **total(usages)}


async def _events(job: Job, body: ImageBody, size: str, name: str) -> AsyncIterator[str]:
    sent: dict[int, int] = {}
    common = {"output_format": body.output_format, "size": size, "quality": body.quality or "auto", "background": "opaque"}
    try:
        async for item in job.events():
            if item is None:
                yield sse.KEEP_ALIVE
                continue
            index, event = item
            head = {**common, "created_at": int(time.time()), "index": index}
            if isinstance(event, Preview) and sent.get(index, 0) < body.partial_images:
                number = sent.get(index, 0)
                sent[index] = number + 1
                kind = f"{name}.partial_image"
                picture = await encoded(event, body.output_format)
                yield sse.event({"type": kind, "b64_json": picture, "partial_image_index": number, **head}, kind)
            elif isinstance(event, Done):
                if not event.rgb:
                    raise _cancelled()
                kind = f"{name}.completed"
                picture = await encoded(event, body.output_format)
                answer = {"type": kind, "b64_json": picture, "usage": _usage([event.usage]), **head, **_ran(job, event, body)}
                yield sse.event(with_score(answer, event.score), kind)
    except ApiError as error:
        yield sse.event({"type": "error", **error.body()}, "error")
    finally:
        job.cancel()
