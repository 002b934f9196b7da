"""A model's own chat template: Jinja, sandboxed, with what the templates on the hub rely on, and a limit on its time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from service.engine.validation import InvalidField

SECONDS = 5.0
LONGEST = 16 << 20
DEFAULT, WITH_TOOLS = "default", "tool_use"
FINAL_MESSAGE_END = "<END OF THE FINAL MESSAGE> "
RESERVED = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token"}

_deadline: ContextVar[float] = ContextVar("deadline")


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here its body is just text."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """Looks at the clock wherever a template touches a value or calls something, and bounds what it can build at once."""

    intercepted_binops = frozenset({"*", "**"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        _check_time()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        _check_time()
        return super().getitem(obj, argument)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        _check_time()
        return super().call(*args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_time()
        size = max(len(side) if isinstance(side, str | list | tuple) else 1 for side in (left, right))
        times = max(abs(side) if isinstance(side, int | float) else 1 for side in (left, right))
        if (operator == "*" and size * times > LONGEST) or (operator == "**" and times > 64):
            raise TemplateError(f"{operator} would make something too large")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """The templates of a model folder: `chat_template.jinja` and `additional_chat_templates/NAME.jinja`, or what
    tokenizer_config.json has in their place, one or several by name. `special` are the tokens that they may name."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.sources = _sources(folder, config.get("chat_template"))
        self._special = {name: text for name, value in config.items() if name.endswith("_token") and (text := _token(value))}
        self._environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self._environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
        self._environment.filters["tojson"] = _tojson
        self._templates: dict[str, Template] = {}
        self.broken: str | None = None
        try:
            self._templates = {name: self._environment.from_string(source) for name, source in self.sources.items()}
        except TemplateSyntaxError as error:
            self.broken = f"line {error.lineno}: {error.message}"

    def knows(self, word: str) -> bool:
        """Whether some template reads this variable, `tools` say."""
        return any(
            word in meta.find_undeclared_variables(self._environment.parse(self.sources[name])) for name in self._templates
        )

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), options: Mapping[str, Any] = {},
        generation_prompt: bool = True, continue_final: bool = False,
    ) -> str:  # fmt: skip
        """The prompt of a chat. Raises InvalidField when there is no template, or when it refuses, fails or takes too long."""
        if self.broken is not None:
            raise InvalidField("model", f"this model's chat template is broken: {self.broken}")
        if not self._templates:
            raise InvalidField("model", "this model has no chat template; use /v1/completions")
        reserved = RESERVED & options.keys()
        if reserved:
            raise InvalidField("chat_template_kwargs", f"{', '.join(sorted(reserved))} cannot be set by chat_template_kwargs")
        name = WITH_TOOLS if tools and WITH_TOOLS in self._templates else DEFAULT
        template = self._templates.get(name) or next(iter(self._templates.values()))
        words = {
            "bos_token": "", "eos_token": "", **self._special, **options, "messages": messages, "tools": list(tools) or None,
            "documents": None, "add_generation_prompt": generation_prompt,
        }  # fmt: skip
        if not continue_final:
            return _rendered(lambda: template.generate(words))
        *earlier, last = messages
        if not str(last["content"]).strip():
            raise InvalidField("continue_final_message", "the last message has no content")
        words["messages"] = [*earlier, {**last, "content": f"{last['content']}{FINAL_MESSAGE_END}"}]
        return _until_end(_rendered(lambda: template.generate(words)))


def _rendered(generate: Callable[[], Any]) -> str:
    pieces, length = [], 0
    _deadline.set(time.monotonic() + SECONDS)
    try:
        for piece in generate():
            _check_time()
            pieces.append(piece)
            length += len(piece)
            if length > LONGEST:
                raise TemplateError(f"the prompt is longer than {LONGEST} characters")
    except Exception as error:  # a template is a program of someone else: whatever it raises, the messages do not suit it
        raise InvalidField("messages", f"the chat template refused the messages: {error}") from None
    return "".join(pieces)


def _until_end(prompt: str) -> str:
    """The prompt up to the end of its last message's content, which an answer is to continue. Where the template strips what
    contents end with, so is this one."""
    at = prompt.rfind(FINAL_MESSAGE_END.strip())
    if at < 0:
        raise InvalidField("continue_final_message", "the chat template does not show the last message")
    before = prompt[:at]
    return before if prompt.startswith(FINAL_MESSAGE_END, at) else before.rstrip()


def _sources(folder: Path, configured: Any) -> dict[str, str]:
    out: dict[str, str] = {}
    if isinstance(configured, str):
        out[DEFAULT] = configured
    elif isinstance(configured, list):
        out |= {entry["name"]: entry["template"] for entry in configured}
    elif isinstance(configured, dict):
        out |= configured
    if (folder / "chat_template.jinja").is_file():
        out[DEFAULT] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        out[file.stem] = file.read_text(encoding="utf-8")
    return out


def _token(value: Any) -> str | None:
    """A special token of tokenizer_config.json: a string, or the fields of an AddedToken."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _check_time() -> None:
    if time.monotonic() > _deadline.get(float("inf")):
        raise TemplateError(f"it takes longer than {SECONDS:g} s")


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
            sort_keys: bool = False) -> str:  # fmt: skip
    """transformers' filter: plain JSON, where Jinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)
