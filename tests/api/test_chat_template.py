"""Chat templates give the text that transformers' own `apply_chat_template` gives, and cannot hang or break the server."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from service.api import chat_template
from service.api.text import TextCodec
from service.api.tool_formats import tool_format
from service.engine.validation import InvalidField
from tests.chat_checkpoint import HERMES, LLAMA, MISTRAL, bpe_tokenizer

TEMPLATES = {"hermes": HERMES, "llama3_json": LLAMA, "mistral": MISTRAL}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "description": "a <b> & 'c' für", "parameters": {"type": "object", "properties": {}}},
    }
]
CALLED = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"x": [1, "é<"], "y": None}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "plain": [{"role": "user", "content": " Héllo <world> & 'all' "}],
    "turns": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "{{ c }}"},
    ],
    "tools": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [CALLED]},
        {"role": "tool", "content": "21", "tool_call_id": "abcdefghi"},
    ],
}  # fmt: skip


def _codec(folder: Path, template: Any, **config: Any) -> TextCodec:
    folder.mkdir(exist_ok=True)
    bpe_tokenizer().save(str(folder / "tokenizer.json"))
    words = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>", "lstrip": False}, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps({**words, **config}))
    return TextCodec(str(folder))


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["bare", "tools"])
def test_the_text_is_that_of_transformers(tmp_path: Path, name: str, chat: str, tools: list[dict[str, Any]] | None) -> None:
    reference = PreTrainedTokenizerFast(tokenizer_object=bpe_tokenizer(), bos_token="<|im_start|>", eos_token="<|im_end|>")
    codec = _codec(tmp_path, TEMPLATES[name])
    for prompt in (True, False):
        expected = reference.apply_chat_template(
            CHATS[chat], tools=tools, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=prompt
        )
        assert codec.template.render(CHATS[chat], tools or (), generation_prompt=prompt) == expected


def test_the_last_message_can_be_gone_on_with_as_in_transformers(tmp_path: Path) -> None:
    reference = PreTrainedTokenizerFast(tokenizer_object=bpe_tokenizer(), eos_token="<|im_end|>")
    for template in (HERMES, HERMES.replace("message.content", "message.content | trim")):
        codec = _codec(tmp_path, template)
        for content in ("It begins", "It begins ", "```json\n", "<", ">", "end", "i", "user"):
            chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]
            expected = reference.apply_chat_template(chat, chat_template=template, tokenize=False, continue_final_message=True)
            rendered = codec.template.render(chat, generation_prompt=False, continue_final=True)
            assert rendered == expected and rendered.endswith(content if template == HERMES else content.strip())


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_format_of_tool_calls_is_read_from_the_template(tmp_path: Path, name: str) -> None:
    assert tool_format(_codec(tmp_path, TEMPLATES[name]).template).name == name


@pytest.mark.parametrize(
    "template", ["{{ messages }}", "{% for tool in tools %}{{ tool }}{% endfor %}", HERMES + "{# <function= #}"]
)
def test_a_template_without_tools_or_with_calls_of_an_unknown_kind_refuses_tools(tmp_path: Path, template: str) -> None:
    with pytest.raises(InvalidField) as refused:
        tool_format(_codec(tmp_path, template).template)
    assert refused.value.param == "tools"


def test_named_templates_files_and_folders_are_found(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools: {{ tools | length }}"}]
    codec = _codec(tmp_path, named)
    assert codec.template.render(CHATS["plain"]) == "plain"
    assert codec.template.render(CHATS["plain"], TOOLS) == "tools: 1"
    (tmp_path / "chat_template.jinja").write_text("from a file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("from a folder")
    codec = _codec(tmp_path, named)
    assert codec.template.render(CHATS["plain"]) == "from a file"
    assert codec.template.render(CHATS["plain"], TOOLS) == "from a folder"


def test_the_functions_that_templates_rely_on_are_there(tmp_path: Path) -> None:
    generation = "{% generation %}|{{ {'a': '<é>'} | tojson }}{% endgeneration %}"
    codec = _codec(tmp_path, "{{ strftime_now('%Y') }}" + generation + "|{{ extra }}")
    assert codec.template.render(CHATS["plain"], options={"extra": 5}) == f'{datetime.now().year}|{{"a": "<é>"}}|5'


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[7].content.x.y }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 'x' * 10000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ messages[0].role }}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% include 'other' %}",
    ],
)
def test_what_a_template_does_wrong_is_the_messages_400(tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.5)
    with pytest.raises(InvalidField) as refused:
        _codec(tmp_path, template).template.render(CHATS["plain"])
    assert refused.value.param == "messages"


def test_a_template_that_is_no_jinja_refuses_chats_and_nothing_else(tmp_path: Path) -> None:
    codec = _codec(tmp_path, "{% if %}")
    with pytest.raises(InvalidField, match="broken"):
        codec.template.render(CHATS["plain"])
    assert codec.decode(codec.encode("text")) == "text"


def test_a_prompt_from_a_template_gets_no_second_bos(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    codec = _codec(tmp_path, "{{ bos_token }}{{ messages[0].content }}")
    begin = codec.tokenizer.token_to_id("<|im_start|>")
    codec.tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", begin)])
    prompt = codec.template.render(CHATS["plain"])
    assert codec.encode(prompt, special=False).count(begin) == 1 and codec.encode(prompt).count(begin) == 2
