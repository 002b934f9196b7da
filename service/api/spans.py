"""What a trace says of a request: a span of the server with those of its stages, as plain data.

Names of attributes are OpenTelemetry's semantic conventions for HTTP servers and for generative AI (`gen_ai.*`,
https://opentelemetry.io/docs/specs/semconv/gen-ai/), and `stride.*` for what these have no word for. No span holds a prompt or
an output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.api.call import Call, Output
from service.api.running import total

Value = str | int | float | bool | Sequence[str]

TEXT_OPERATIONS = {"/v1/chat/completions": "chat"}


@dataclass(frozen=True)
class Span:
    """From one monotonic second to another. `error` is set on one that failed by the server's fault."""

    name: str
    began: float
    ended: float
    attributes: Mapping[str, Value]
    error: str | None = None
    children: Sequence[Span] = field(default_factory=tuple)


def server_span(call: Call) -> Span:
    """Of a call that is over."""
    assert call.answered is not None
    ended = max([call.answered, *(stage.ended for output in call.outputs for stage in output.stages)])
    attributes: dict[str, Value | None] = {
        "http.request.method": call.method,
        "http.route": call.route,
        "http.response.status_code": call.status,
        "gen_ai.response.id": call.id,
        "stride.outcome": call.outcome,
        **_asked(call),
        **_used(call),
    }
    error = None
    if call.failure is not None:
        status, code = call.failure
        attributes["error.type"] = code
        error = code if status >= 500 else None
    children = [child for output in call.outputs for child in _stages(call, output)]
    return Span(_name(call), call.arrived, ended, _given(attributes), error, children)


def _operation(call: Call) -> str:
    if call.asked is not None and call.asked.size is not None:
        return "generate_content"
    return TEXT_OPERATIONS.get(call.route or "", "text_completion")


def _name(call: Call) -> str:
    return f"{call.method} {call.route or ''}".strip() if call.asked is None else f"{_operation(call)} {call.asked.model}"


def _asked(call: Call) -> dict[str, Value | None]:
    asked = call.asked
    if asked is None:
        return {}
    attributes: dict[str, Value | None] = {
        "gen_ai.operation.name": _operation(call),
        "gen_ai.provider.name": "stride",
        "gen_ai.output.type": "text" if asked.size is None else "image",
        "gen_ai.request.model": asked.model,
        "gen_ai.response.model": asked.model,
        "gen_ai.request.choice.count": asked.outputs,
        "gen_ai.request.seed": asked.seed,
        "gen_ai.request.stream": call.streamed,
        "stride.procedure": asked.procedure,
    }
    sampling = asked.sampling
    if sampling is not None:
        attributes |= {
            "gen_ai.request.max_tokens": asked.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.top_k": sampling.top_k or None,
            "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
            "gen_ai.request.presence_penalty": sampling.presence_penalty,
        }
    if asked.size is not None:
        attributes |= {"stride.image.width": asked.size[0], "stride.image.height": asked.size[1]}
    return attributes


def _used(call: Call) -> dict[str, Value | None]:
    usages = [output.usage for output in call.outputs if output.usage is not None]
    if not usages:
        return {}
    assert call.asked is not None
    used = total(usages, call.asked.each)
    return {
        "gen_ai.response.finish_reasons": [output.outcome for output in call.outputs],
        "gen_ai.usage.input_tokens": used.get("prompt_tokens"),
        "gen_ai.usage.output_tokens": used.get("generated_tokens"),
        "gen_ai.usage.cache_read.input_tokens": used.get("cached_tokens"),
        "gen_ai.response.time_to_first_chunk": used.get("first_output_seconds") if call.streamed else None,
        "stride.first_output_seconds": used.get("first_output_seconds"),
        **{f"stride.{name}": used.get(name) for name in ("forwards", "nfe", "drafted_tokens", "accepted_tokens")},
    }


def _stages(call: Call, output: Output) -> list[Span]:
    number: dict[str, Value] = {"stride.output": output.index}
    return [Span(stage.name, stage.began, stage.ended, number) for stage in output.stages]


def _given(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in attributes.items() if value is not None}
