"""The form of /v1/images/edits as the body that the other image route takes as JSON."""

from __future__ import annotations

import base64
import json
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from service.api.errors import ApiError
from service.api.schemas import ImageBody

FILES = ("image", "mask")
MOST_FIELDS = 64


async def edit_body(request: Request) -> ImageBody:
    """Raises ApiError when the body is no form, has no image or several, and RequestValidationError as JSON bodies do."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "the body must be multipart/form-data with a file `image`", "image", "invalid_value")
    form = await _form(request)
    try:
        raw = await _fields(form)
    finally:
        await form.close()
    if "image" not in raw:
        raise ApiError(400, "image is missing: the file of the picture to change", "image", "invalid_value")
    try:
        return ImageBody.model_validate(raw)
    except ValidationError as error:
        problems = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(problems, body=raw) from None


async def _form(request: Request) -> FormData:
    try:
        return await request.form(max_files=4, max_fields=MOST_FIELDS)
    except ClientDisconnect:
        raise ApiError(499, "the client went away", None, "client_closed_request") from None
    except ValueError:  # of Python's codecs, some of which read no form
        raise ApiError(400, "the form cannot be read in its charset: send it as UTF-8", None, "invalid_value") from None


async def _fields(form: FormData) -> dict[str, Any]:
    raw: dict[str, Any] = {}
    for name, value in form.multi_items():
        name = name.removesuffix("[]")
        if name in raw:
            raise ApiError(400, f"{name} is given more than once, and one is taken", name, "invalid_value")
        if isinstance(value, UploadFile) != (name in FILES):
            kind = "a file" if name in FILES else "no file"
            raise ApiError(400, f"{name} must be {kind}", name, "invalid_value")
        raw[name] = base64.b64encode(await value.read()).decode() if isinstance(value, UploadFile) else _value(name, value)
    return raw


def _value(name: str, text: str) -> Any:
    """Forms know text alone: what is no text in JSON is written as JSON."""
    if name not in ImageBody.model_fields or (name in _TEXTS and not (name in _OBJECTS and text.startswith("{"))):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # the latter where it is nested thousands deep
        return text


def _of_type(kind: str) -> frozenset[str]:
    """Fields that a JSON body may give as this type of JSON Schema."""
    fields = ImageBody.model_json_schema()["properties"].items()
    return frozenset(name for name, way in fields if kind in {one.get("type") for one in (way, *way.get("anyOf", ()))})


_TEXTS, _OBJECTS = _of_type("string"), _of_type("object")
