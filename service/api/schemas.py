"""Bodies of requests: strict, complete, nothing ignored in silence."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from service.api.errors import ApiError

Seed = Annotated[StrictInt, Field(ge=0, lt=2**63)]
Number = StrictFloat | StrictInt
TokenId = Annotated[StrictInt, Field(ge=0)]
StopString = Annotated[StrictStr, Field(min_length=1)]
Stop = StopString | Annotated[list[StopString], Field(max_length=16)]


class Body(BaseModel):
    """A field that is null is one that is not given, as OpenAI's clients have it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        refuse_half_characters(raw)
        return {name: value for name, value in raw.items() if value is not None}


def refuse_half_characters(value: Any, place: str = "") -> None:
    """JSON can spell half of a surrogate pair, which is no text. Raises ApiError with the field that has one."""
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ApiError(
                400, f"{place or 'the body'} holds half of a surrogate pair, which is no text", place or None, "invalid_value"
            )
    elif isinstance(value, dict):
        for name, item in value.items():
            refuse_half_characters(name, place)
            refuse_half_characters(item, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            refuse_half_characters(item, f"{place}.{index}")


class Served(Body):
    """What every generating route takes."""

    model: StrictStr
    n: Annotated[StrictInt, Field(ge=1, le=128)] = 1
    seed: Seed | None = None
    stream: StrictBool = False
    procedure: StrictStr | dict[str, Any] | None = Field(None, description="name, or {name, ...parameters}")
    priority: Annotated[StrictInt, Field(ge=-(2**31), lt=2**31, description="lower runs first")] = 0
    deadline_ms: Annotated[Number, Field(gt=0, le=86_400_000)] | None = None
    user: StrictStr | None = Field(None, description="accepted; has no effect")
    metadata: dict[str, Any] | None = Field(None, description="accepted; has no effect")
    store: StrictBool | None = Field(None, description="accepted; nothing is stored")

    def choice(self) -> dict[str, Any] | None:
        return {"name": self.procedure} if isinstance(self.procedure, str) else self.procedure


class SamplingFields(Body):
    temperature: Annotated[Number, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[StrictInt, Field(ge=-1, le=1_000_000)] = 0
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=10)] = 1.0
    min_tokens: Annotated[StrictInt, Field(ge=0)] = 0
    ignore_eos: StrictBool = False
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] = []
    stop: Stop | None = None

    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class StreamOptions(Body):
    include_usage: StrictBool = False


class TextFields(Served, SamplingFields):
    """What completions and chat completions share; the unsupported are named, and refused when they ask for something."""

    stream_options: StreamOptions | None = None
    return_token_ids: StrictBool = False
    logit_bias: dict[str, Number] | None = Field(None, description="not supported yet")
    presence_penalty: Number = Field(0.0, description="only 0 is supported yet")
    frequency_penalty: Number = Field(0.0, description="only 0 is supported yet")

    def unsupported(self) -> str | None:
        """The first field that asks for something that is not there."""
        return next((name for name in ("logit_bias", "presence_penalty", "frequency_penalty") if getattr(self, name)), None)


class CompletionBody(TextFields):
    prompt: StrictStr | list[TokenId]
    max_tokens: Annotated[StrictInt, Field(ge=1)] = 16
    echo: StrictBool = False
    best_of: Annotated[StrictInt, Field(ge=1)] | None = Field(None, description="only n is supported")
    logprobs: StrictInt | None = Field(None, description="not supported yet")
    suffix: StrictStr | None = Field(None, description="not supported")

    def unsupported(self) -> str | None:
        if self.best_of is not None and self.best_of != self.n:
            return "best_of"
        return super().unsupported() or next((name for name in ("logprobs", "suffix") if getattr(self, name) is not None), None)


class TextPart(Body):
    type: Literal["text"]
    text: StrictStr


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | list[TextPart]
    name: StrictStr | None = None

    def flat(self) -> dict[str, Any]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content, **({"name": self.name} if self.name else {})}


class ChatBody(TextFields):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: StrictBool | None = Field(None, description="not supported yet")
    top_logprobs: StrictInt | None = Field(None, description="not supported yet")
    response_format: dict[str, Any] | None = Field(None, description='only {"type": "text"} is supported yet')
    tools: list[Any] | None = Field(None, description="not supported yet")
    tool_choice: Any = Field(None, description="not supported yet")

    def unsupported(self) -> str | None:
        if self.response_format not in (None, {"type": "text"}):
            return "response_format"
        return super().unsupported() or next(
            (name for name in ("logprobs", "top_logprobs", "tools", "tool_choice") if getattr(self, name)), None
        )


class ImageBody(Served):
    prompt: StrictStr
    size: StrictStr | None = Field(None, description="WIDTHxHEIGHT, or auto")
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    partial_images: Annotated[StrictInt, Field(ge=0, le=3)] = 0
    negative_prompt: StrictStr | None = None
    num_inference_steps: StrictInt | None = None
    guidance_scale: Number | None = None
    quality: Literal["auto"] | None = None


class GenerateBody(Served, SamplingFields):
    prompt: StrictStr | None = None
    input_tokens: list[TokenId] | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    size: StrictStr | None = None
    negative_prompt: StrictStr | None = None
    preview_every: Annotated[
        StrictInt, Field(ge=0, le=10_000, description="evaluations between previews, with stream; 0 is none")
    ] = 0


class TokenizeBody(Body):
    model: StrictStr
    prompt: StrictStr


class DetokenizeBody(Body):
    model: StrictStr
    tokens: list[TokenId]
