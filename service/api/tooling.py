"""The tools of a chat: which format the model writes calls in, what it is shown, and what its output must follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from service.api.chat_schemas import ChatBody, NamedTool
from service.api.text import TextCodec
from service.api.tool_formats import ToolFormat, calls_grammar, shown_tokens, tool_format
from service.engine.validation import InvalidField


@dataclass(frozen=True)
class Tooling:
    """`form` is None without tools; `grammar` is empty where the output is free. `param` is the field it comes from."""

    form: ToolFormat | None = None
    shown: list[dict[str, Any]] = field(default_factory=list)
    marks: dict[int, str] = field(default_factory=dict)
    grammar: str = ""
    param: str = ""

    @classmethod
    def of(cls, body: ChatBody, codec: TextCodec) -> Tooling:
        """Raises InvalidField when the model takes no tools, or the choice names none of them."""
        choice = body.tool_choice or ("auto" if body.tools else "none")
        if not body.tools:
            if choice not in ("none", "auto"):
                raise InvalidField("tool_choice", "tool_choice needs tools")
            return cls()
        names = [tool.function.name for tool in body.tools]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidField("tools", f"two tools are called {twice}")
        if choice == "none":
            return cls()
        form = tool_format(codec.template)
        shown = [tool.shown() for tool in body.tools]
        grammar, param = _grammar(body, form, choice, codec)
        return cls(form, shown, shown_tokens(form, codec), grammar, param)


def _grammar(body: ChatBody, form: ToolFormat, choice: str | NamedTool, codec: TextCodec) -> tuple[str, str]:
    functions = [tool.function for tool in body.tools]
    free = choice == "auto"
    if free and not any(function.strict for function in functions):
        return "", ""
    if isinstance(choice, NamedTool):
        name = choice.function.name
        functions = [function for function in functions if function.name == name]
        if not functions:
            raise InvalidField("tool_choice.function.name", f"no tool is called {name!r}")
    if free and form.opening and codec.tokenizer.token_to_id(form.opening) is None and form.name != "llama3_json":
        raise InvalidField("tools", f"strict needs a tokeniser with {form.opening} as a token, unless tool_choice is required")
    described = [{"name": f.name, "parameters": f.parameters if f.strict or not free else {"type": "object"}} for f in functions]
    for function in (each for each in functions if each.strict or not free):
        kind = (function.parameters or {}).get("type", "object")
        if kind != "object":
            raise InvalidField("tools", f"the parameters of {function.name} must be of the type object, not {kind!r:.80}")
    several = body.parallel_tool_calls and not isinstance(choice, NamedTool)
    return calls_grammar(form, described, codec, several, free), "tools"
