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

from service.api.body import is_text
from service.api.errors import ApiError
from service.api.schemas import ImageBody

FILES = ("image", "mask")
MOST_FIELDS = 64
DEEPEST_FIELD = 4


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
        if not is_text(name):
            raise ApiError(400, "the name of a field is no text", None, "invalid_value")
        name = name.removesuffix("[]") if name.count("[") == 1 else name
        if isinstance(value, UploadFile) != (name in FILES):
            kind = "a file" if name in FILES else "no file"
            raise ApiError(400, f"{name} must be {kind}", name, "invalid_value")
        given = base64.b64encode(await value.read()).decode() if isinstance(value, UploadFile) else _value(name, value)
        if not _put(raw, _path(name), given):
            raise ApiError(400, f"{name} is given more than once, and one is taken", name, "invalid_value")
    return raw


def _path(name: str) -> list[str]:
    """`procedure[steps]` and `lora[][scale]`, as clients write objects and lists of them into forms, in parts; "" is a place in a
    list."""
    first, *rest = name.split("[")
    well_formed = 0 < len(rest) < DEEPEST_FIELD and first in _NESTED and all(one.endswith("]") for one in rest)
    return [first, *(one.removesuffix("]") for one in rest)] if well_formed else [name]


def _put(into: dict[str, Any], path: list[str], value: Any) -> bool:
    """Into what is nested as the path says: False where something is already there. A list begins its next object with the first
    field that the last one has."""
    name, *rest = path
    if not rest:
        if name in into:
            return False
        into[name] = value
        return True
    if rest[0]:
        inner = into.setdefault(name, {})
        return isinstance(inner, dict) and _put(inner, rest, value)
    every = into.setdefault(name, [])
    if not isinstance(every, list):
        return False
    if len(rest) == 1:
        every.append(value)
    elif not (every and isinstance(every[-1], dict) and _put(every[-1], rest[1:], value)):
        every.append({})
        return _put(every[-1], rest[1:], value)
    return True


def _value(name: str, text: str) -> Any:
    """Forms know text alone: what is no text in JSON is written as JSON, but for names."""
    if name.endswith("[name]"):
        return text
    if _path(name) == [name] and (
        name not in ImageBody.model_fields or (name in _TEXTS and not (name in _OBJECTS and text.startswith("{")))
    ):
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
_NESTED = _OBJECTS | _of_type("array")
