"""The body of a chat: messages of every role, tools, and what OpenAI's clients may send beside them."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from service.api.body import Part
from service.api.sampling_schemas import Schema
from service.api.schemas import NO_EFFECT, LikeliestCount, Served, TextFields
from service.engine.validation import InvalidField


class TextPart(Part):
    type: Literal["text"]
    text: StrictStr


class CalledFunction(Part):
    name: StrictStr
    arguments: StrictStr


class ToolCall(Part):
    id: StrictStr
    type: Literal["function"] = "function"
    function: CalledFunction
    index: StrictInt | None = Field(None, description="of a streamed delta; has no effect")


class Message(Part):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)] | None = None
    name: StrictStr | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] = []
    tool_call_id: StrictStr | None = None
    reasoning_content: StrictStr | None = Field(None, description="for templates that show it again")

    REFUSED: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        "refusal": ((), "models here do not refuse in a field of its own"),
        "audio": ((), "only text is understood"),
        "function_call": ((), "use tool_calls"),
        "annotations": (([],), "only text is understood"),
    }

    def flat(self, place: str) -> dict[str, Any]:
        """As chat templates expect it: content is text, the arguments of calls are objects. Raises InvalidField."""
        self._check_role(place)
        content = self.content if isinstance(self.content, str | None) else "".join(part.text for part in self.content)
        out: dict[str, Any] = {"role": self.role, "content": content or ""}
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(self, name)) is not None:
                out[name] = value
        if self.tool_calls:
            out["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": _arguments(call, at)}}
                for i, call in enumerate(self.tool_calls)
                if (at := f"{place}.tool_calls.{i}.function.arguments")
            ]
        return out

    def _check_role(self, place: str) -> None:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise InvalidField(f"{place}.content", f"a message of the role {self.role} needs content")
        if self.tool_calls and self.role != "assistant":
            raise InvalidField(f"{place}.tool_calls", f"only an assistant calls tools, not the role {self.role}")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise InvalidField(f"{place}.tool_call_id", "a message of the role tool, and no other, needs a tool_call_id")


def _arguments(call: ToolCall, place: str) -> Any:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidField(place, f"the arguments of {call.function.name} are not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise InvalidField(place, f"the arguments of {call.function.name} are not a JSON object")
    return arguments


class FunctionDefinition(Part):
    name: Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: StrictStr | None = None
    parameters: Schema | None = None
    strict: StrictBool | None = Field(None, description="true: calls follow the parameters' schema, whatever tool_choice is")


class Tool(Part):
    type: Literal["function"]
    function: FunctionDefinition

    def shown(self) -> dict[str, Any]:
        """As chat templates expect it; `strict` is between client and server."""
        return {"type": "function", "function": self.function.model_dump(exclude={"strict"}, exclude_none=True)}


class NamedFunction(Part):
    name: StrictStr


class NamedTool(Part):
    type: Literal["function"]
    function: NamedFunction


class ChatBody(TextFields):
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool = False
    top_logprobs: LikeliestCount | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] = []
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: StrictBool = Field(True, description="false: at most one call")
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: StrictBool = True
    continue_final_message: StrictBool = Field(False, description="the answer goes on from the last message")
    add_special_tokens: StrictBool = Field(False, description="beside those that the chat template writes")
    prompt_cache_key: StrictStr | None = Field(None, description=NO_EFFECT)
    safety_identifier: StrictStr | None = Field(None, description=NO_EFFECT)

    REFUSED: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        **Served.REFUSED,
        "audio": ((), "only text is made"),
        "modalities": ((["text"],), "only text is made"),
        "functions": (([],), "use tools"),
        "function_call": (("none", "auto"), "use tool_choice"),
        "moderation": ((), "nothing is moderated"),
        "prediction": ((), "the model predicts alone"),
        "prompt_cache_options": ((), "the cache has no options for a request"),
        "prompt_cache_retention": (("in_memory",), "what is cached stays in memory"),
        "reasoning_effort": ((), "use chat_template_kwargs where the model's template knows it"),
        "verbosity": (("medium",), "say in a message how long the answer should be"),
        "web_search_options": ((), "this server does not search"),
    }

    def likeliest(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None
