"""What an output must look like, from a request's fields to a grammar that is known to be safe to compile."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from fastapi import Request
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from service.api.errors import ApiError
from service.api.running import unless_gone
from service.api.sampling_schemas import ResponseFormat, SamplingFields, StructuredOutputs
from service.api.service_state import Service
from service.api.trials import Trials
from service.engine.grammar import GrammarError
from service.engine.messages import ModelCard
from service.engine.validation import InvalidField

GRAMMAR_BYTES = 128 << 10
"""Of a grammar's text, which goes to the engine with every output and is kept there while its compiled form is."""
# Between the parts of JSON a line break and some indentation at most: free whitespace invites a model to write nothing else.
JSON_STYLE: Any = {"whitespace_pattern": r"\n?[ ]{0,24}", "whitespace_flexible": True}
ANY_OBJECT = {"type": "object"}


def json_rule(name: str, schema: dict[str, Any]) -> str:
    """A rule of a Lark grammar: JSON of this schema, on one line."""
    return f"{name}: %json {json.dumps({**schema, 'x-guidance': JSON_STYLE})}"


def asked(body: SamplingFields) -> tuple[str, str] | None:
    """The field that asks for a form, and its grammar; None for free text. Raises InvalidField."""
    outputs, form = body.structured_outputs, body.response_format
    if form is not None and form.type == "text":
        form = None
    if outputs is not None and form is not None:
        raise InvalidField("structured_outputs", "give either structured_outputs or response_format")
    found = _of_format(form) if form is not None else _of_outputs(outputs) if outputs is not None else None
    if found is not None:
        refuse_beside(body, found[0])
    return found


def refuse_beside(body: SamplingFields, param: str) -> None:
    """A grammar decides where the text ends; what contradicts that is refused by name."""
    for name, given in (("min_tokens", body.min_tokens > 0), ("ignore_eos", body.ignore_eos)):
        if given:
            raise InvalidField(name, f"{name} contradicts {param}, which decides where the text ends")


async def tried(
    service: Service, request: Request, card: ModelCard, asked: tuple[str, str], deadline_ms: float | None
) -> str:  # fmt: skip
    """The grammar that this field asks for, once it has stood its trial. Raises InvalidField with the reason, EngineUnavailable,
    and ApiError when the client leaves or the request's deadline passes first."""
    arrived: float = request.state.arrived
    left = None if deadline_ms is None else arrived + deadline_ms / 1000 - time.monotonic()
    try:
        async with asyncio.timeout(left):
            return await unless_gone(request, None, _tried(service.trials(card), *asked))
    except TimeoutError:
        service.metrics.missed(card.name)
        message = f"the deadline passed after {time.monotonic() - arrived:.3f} s, while {asked[0]} was tried"
        raise ApiError(504, message, "deadline_ms", "deadline_exceeded") from None


async def _tried(trials: Trials, param: str, grammar: str) -> str:
    _fits(grammar, param)
    try:
        await trials.check(grammar)
    except GrammarError as error:
        raise InvalidField(param, f"{param} cannot be followed: {error}") from None
    return grammar


def _fits(text: str, param: str) -> None:
    size = len(text.encode(errors="replace"))
    if size > GRAMMAR_BYTES:
        raise InvalidField(param, f"{param} makes a grammar of {size} bytes, at most {GRAMMAR_BYTES} are allowed")


def _of_format(form: ResponseFormat) -> tuple[str, str]:
    if form.json_schema is not None and form.type != "json_schema":
        raise InvalidField("response_format.json_schema", f"json_schema is for the type json_schema, not {form.type}")
    if form.type == "json_object":
        return "response_format", _json(ANY_OBJECT, "response_format")
    if form.json_schema is None:
        raise InvalidField("response_format.json_schema", "response_format of the type json_schema needs a json_schema")
    param = "response_format.json_schema.schema"
    return param, _json(form.json_schema.json_schema, param)


def _of_outputs(outputs: StructuredOutputs) -> tuple[str, str]:
    given = sorted(outputs.model_fields_set - ({"json_object"} if outputs.json_object is False else set()))
    if len(given) != 1:
        raise InvalidField("structured_outputs", "give exactly one of json, json_object, regex, choice and grammar")
    name = given[0].removesuffix("_schema")
    param = f"structured_outputs.{name}"
    if outputs.json_schema is not None:
        return param, _json(_schema(outputs.json_schema, param), param)
    if outputs.json_object:
        return param, _json(ANY_OBJECT, param)
    if outputs.regex is not None:
        return param, str(LLMatcher.grammar_from_regex(outputs.regex))
    if outputs.choice is not None:
        return param, str(LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, outputs.choice))))
    assert outputs.grammar is not None
    return param, _lark(outputs.grammar, param)


def _json(schema: dict[str, Any], param: str) -> str:
    try:
        return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_STYLE))
    except (ValueError, RecursionError) as error:
        raise InvalidField(param, f"{param} cannot be followed: {error}") from None


def _schema(given: dict[str, Any] | str, param: str) -> dict[str, Any]:
    if isinstance(given, dict):
        return given
    try:
        schema = json.loads(given)
    except (ValueError, RecursionError) as error:
        raise InvalidField(param, f"{param} is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise InvalidField(param, f"{param} is not a JSON object")
    return schema


def _lark(text: str, param: str) -> str:
    _fits(text, param)  # the converter takes its time
    try:
        return str(LLMatcher.grammar_from_lark(any_to_lark(text)))
    except Exception as error:  # the converter is a parser of its own, which raises what it likes
        raise InvalidField(param, f"{param} is neither GBNF nor Lark: {error}") from None
