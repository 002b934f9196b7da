"""Tool calls are found however the text is cut, and what is none stays text."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from service.api import tool_calls
from service.api.tool_calls import ArgumentsGoOn, CallBegins, Content, ToolCallParser
from service.api.tool_formats import HERMES, LLAMA3, MISTRAL, MISTRAL_SPLIT, ToolFormat

A = '{"city": "Par\\"is} </tool_call> [é", "n": [1, {"k": null}]}'
NAMES = frozenset({"get_weather", "f"})
Calls = list[tuple[str, str]]

CASES: list[tuple[ToolFormat, str, str, Calls]] = [
    (HERMES, f'<tool_call>\n{{"name": "f", "arguments": {A}}}\n</tool_call>', "", [("f", A)]),
    (
        HERMES,
        f'Let me see.\n<tool_call>\n{{"name": "f", "arguments": {A}}}\n</tool_call>\n'
        '<tool_call>{"name":"get_weather","arguments":{}}</tool_call>',
        "Let me see.",
        [("f", A), ("get_weather", "{}")],
    ),
    (HERMES, '<tool_call>\n{"arguments": {"a": 1}, "name": "f"}\n</tool_call>', "", [("f", '{"a": 1}')]),
    (HERMES, "No call, but 1 < 2 and <tool_cal", "No call, but 1 < 2 and <tool_cal", []),
    (HERMES, "<tool_call>\nnot json\n</tool_call>", "<tool_call>\nnot json\n</tool_call>", []),
    (HERMES, '<tool_call>{"no": "name"}</tool_call>', '<tool_call>{"no": "name"}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "\\q", "arguments": {}}', '<tool_call>{"name": "\\q", "arguments": {}}', []),
    (HERMES, '<tool_call>{"name": "\\ud800", "arguments": {}}', '<tool_call>{"name": "\\ud800", "arguments": {}}', []),
    (HERMES, '<tool_call>{"arguments": {"a": "\\ud800"}, "name": "f"}</tool_call>', "", [("f", '{"a": "\\ud800"}')]),
    (HERMES, f'<tool_call>{" " * 600}{{{" " * 600}"name": "f", "arguments": {A}}}</tool_call>', "", [("f", A)]),
    (HERMES, '<tool_call> tags are used.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
     "<tool_call> tags are used.", [("f", "{}")]),
    (HERMES, '<tool_call>{"no": "name"}</tool_call>\n<tool_call>{"name": "f", "arguments": null}</tool_call>',
     '<tool_call>{"no": "name"}</tool_call>', [("f", "{}")]),
    *((HERMES, text, text, []) for text in (f'<tool_call>{{"name": "f", "arguments": {A}}}' for A in ("[1]", '"s"', "7"))),
    (LLAMA3, '{"answer": "' + "no call " * 200 + '"}', '{"answer": "' + "no call " * 200 + '"}', []),
    (LLAMA3, f'{{"name": "f", "parameters": {A}}}', "", [("f", A)]),
    (LLAMA3, f'<|python_tag|>{{"name": "f", "parameters": {A}}}', "", [("f", A)]),
    (LLAMA3, '{"name": "f", "parameters": {}}; {"name": "get_weather", "parameters": {"a": 2}}', "",
     [("f", "{}"), ("get_weather", '{"a": 2}')]),
    (LLAMA3, '{"name": "unknown", "parameters": {}}', '{"name": "unknown", "parameters": {}}', []),
    (LLAMA3, '{"answer": 42}', '{"answer": 42}', []),
    (LLAMA3, 'It is {"name": "f", "parameters": {}}', 'It is {"name": "f", "parameters": {}}', []),
    (MISTRAL, f'[TOOL_CALLS] [{{"name": "f", "arguments": {A}}}]', "", [("f", A)]),
    (MISTRAL, f'[TOOL_CALLS][{{"name": "f", "arguments": {A}}}, {{"name": "f", "arguments": {{}}}}]', "",
     [("f", A), ("f", "{}")]),
    (MISTRAL, "Plain [TOOLS]", "Plain [TOOLS]", []),
    (MISTRAL_SPLIT, f"[TOOL_CALLS]f[ARGS]{A}[TOOL_CALLS]get_weather[ARGS]{{}}", "", [("f", A), ("get_weather", "{}")]),
]  # fmt: skip


def _cut(text: str, seed: int) -> list[str]:
    rng, pieces = random.Random(seed), []
    while text:
        size = rng.randint(1, 6)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@pytest.mark.parametrize("form,text,content,calls", CASES)
def test_calls_are_the_same_whole_and_in_pieces(form: ToolFormat, text: str, content: str, calls: Calls) -> None:
    for seed in range(-1, 12):
        parser = ToolCallParser(form, NAMES)
        cuts = [text] if seed < 0 else _cut(text, seed)
        pieces = [piece for cut in cuts for piece in parser.push(cut)] + parser.push("", last=True)
        assert "".join(p.text for p in pieces if isinstance(p, Content)) == content
        begun = [p for p in pieces if isinstance(p, CallBegins)]
        assert [p.index for p in begun] == list(range(len(calls))) and [p.name for p in begun] == [name for name, _ in calls]
        for i, (_, arguments) in enumerate(calls):
            assert json.loads("".join(p.text for p in pieces if isinstance(p, ArgumentsGoOn) and p.index == i)) == json.loads(
                arguments
            )
        assert not parser.broken and [json.loads(a) for _, a in parser.calls] == [json.loads(a) for _, a in calls]


def test_arguments_come_while_they_are_written() -> None:
    parser = ToolCallParser(HERMES, NAMES)
    pieces = [p for cut in _cut(CASES[0][1], 3) for p in parser.push(cut)]
    assert sum(isinstance(p, ArgumentsGoOn) for p in pieces) > 5


@pytest.mark.parametrize("arguments", ["{nonsense}", '{"a": '])
def test_a_call_that_goes_wrong_is_known_as_broken(arguments: str) -> None:
    parser = ToolCallParser(HERMES, NAMES)
    parser.push(f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>', last=True)
    assert parser.broken


def test_without_parallel_calls_the_first_is_the_only_one() -> None:
    parser = ToolCallParser(HERMES, NAMES, several=False)
    pieces = parser.push(CASES[1][1], last=True)
    assert parser.complete and [p.name for p in pieces if isinstance(p, CallBegins)] == ["f"]


@pytest.mark.parametrize("form", [HERMES, LLAMA3, MISTRAL])
def test_an_object_that_may_be_a_call_is_looked_at_once_however_many_pieces_it_comes_in(
    form: ToolFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0
    push = tool_calls._Value.push

    def counted(value: Any, text: str) -> int:
        nonlocal seen
        seen += len(text)
        return push(value, text)

    monkeypatch.setattr(tool_calls._Value, "push", counted)
    text = '{"answer": "' + "no call " * 1000
    parser = ToolCallParser(form, NAMES)
    parser.push(form.opening)
    for at in range(0, len(text), 4):
        parser.push(text[at : at + 4])
    assert seen == len(text)
