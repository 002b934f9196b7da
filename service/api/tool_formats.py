"""How models write tool calls, by the signs in their chat templates; and the grammar of a call in each way."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.api.chat_template import ChatTemplate
from service.api.constraints import json_rule
from service.api.text import TextCodec
from service.engine.validation import InvalidField


@dataclass(frozen=True)
class ToolFormat:
    """`opening` stands before calls; a call is an object with a name and, under `key`, its arguments, between `before`
    and `after`; several are joined by `between` and the last is followed by `closing`. With `split`, a call is its name,
    that sign, and the arguments. `sign` is what a template of this format holds."""

    name: str
    sign: str
    opening: str
    key: str = "arguments"
    before: str = ""
    after: str = ""
    between: str = ""
    closing: str = ""
    split: str = ""


HERMES = ToolFormat(
    "hermes", "<tool_call>", "<tool_call>", before="\n", after="\n</tool_call>", between="\n<tool_call>",
)  # fmt: skip
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", "[TOOL_CALLS]", before="", between=", ", closing="]")
MISTRAL_SPLIT = ToolFormat("mistral_split", "[ARGS]", "[TOOL_CALLS]", between="[TOOL_CALLS]", split="[ARGS]")
LLAMA3 = ToolFormat("llama3_json", "ipython", "<|python_tag|>", key="parameters", between="; ")

FORMATS = (MISTRAL_SPLIT, MISTRAL, HERMES, LLAMA3)
OTHERS = ("<function=", "<arg_key>", "<｜tool▁calls▁begin｜>")
"""Signs of formats that share a sign with one above but are not it, or of common ones that are not read."""


def tool_format(template: ChatTemplate) -> ToolFormat:
    """The format of this template's tool calls. Raises InvalidField when it takes no tools, or writes calls in a way
    that is not known here."""
    if not template.knows("tools"):
        raise InvalidField("tools", "this model's chat template takes no tools")
    text = "\n".join(template.sources.values())
    found = None if any(sign in text for sign in OTHERS) else next((f for f in FORMATS if f.sign in text), None)
    if found is None:
        known = ", ".join(form.name for form in FORMATS)
        raise InvalidField("tools", f"this model's chat template writes tool calls in a format that is not known here: {known}")
    return found


def shown_tokens(form: ToolFormat, codec: TextCodec) -> dict[int, str]:
    """Tokens that mark calls, by id: they belong to the text even where the tokeniser calls them special."""
    marks = (form.opening, form.split, form.after.strip())
    return {token: mark for mark in marks if mark and (token := codec.tokenizer.token_to_id(mark)) is not None}


def call_id(form: ToolFormat) -> str:
    """A fresh id; Mistral's templates insist on nine letters and digits."""
    letters = string.ascii_letters + string.digits
    size = 9 if form in (MISTRAL, MISTRAL_SPLIT) else 24
    text = "".join(secrets.choice(letters) for _ in range(size))
    return text if size == 9 else f"call_{text}"


def calls_grammar(
    form: ToolFormat, functions: Sequence[Mapping[str, Any]], codec: TextCodec, several: bool, free: bool = False
) -> str:
    """Lark, in llguidance's dialect, of an output that is one call of one of these functions, or `several`. With `free`
    the calls stand in text, and there may be none. Each function has a name and the schema of its parameters."""

    def written(text: str) -> str:
        """Signs that are one token must come as that token; the rest is text."""
        for sign in (form.opening, form.split, form.after.strip()):
            token = codec.tokenizer.token_to_id(sign) if sign else None
            if token is not None and sign in text:
                head, tail = text.split(sign, 1)
                return " ".join(filter(None, (written(head), f"<[{token}]>", written(tail))))
        return json.dumps(text) if text else ""

    head = '{"name": ' if not form.split else ""
    rules, names = [], []
    for i, function in enumerate(functions):
        name = json.dumps(function["name"]) if not form.split else function["name"]
        start = form.before + head + name + (form.split or f', "{form.key}": ')
        end = ("" if form.split else "}") + form.after
        rules.append(f"call_{i}: {written(start)} arguments_{i} {written(end)}")
        rules.append(json_rule(f"arguments_{i}", {"type": "object", **(function.get("parameters") or {"properties": {}})}))
        names.append(f"call_{i}")
    opening = written(form.opening) + (' "["' if form is MISTRAL else "") if form is not LLAMA3 else ""
    more = f"({written(form.between)} call)*" if several and form is not LLAMA3 else ""
    calls = " ".join(filter(None, (opening, "call", more, written(form.closing))))
    if not free:
        start = f"start: {calls}"
    elif form is LLAMA3:
        start = "start: call | /([^{](.|\\n)*)?/"
    else:
        start = f"start: text ({calls} text)?\ntext: /(.|\\n)*/"
    return "\n".join([start, f"call: {' | '.join(names)}", *rules])
