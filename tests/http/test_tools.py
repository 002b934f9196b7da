"""Tools through the unmodified `openai` client and LangChain: forced by a grammar, since the weights are random."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.chat_checkpoint import bpe_tokenizer
from tests.http.server import Server

SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2]}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA | {"additionalProperties": False}}}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "additionalProperties": False}}}
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the weather?"}], "max_tokens": 300, "tools": [WEATHER, TIME],
}  # fmt: skip
MODELS = ("hermes", "llama", "mistral")


@pytest.fixture
def client(chat_server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=chat_server.url + "/v1", api_key="unused", max_retries=0)


def _check(name: str, arguments: str) -> None:
    given = json.loads(arguments)
    if name == "get_weather":
        assert given["city"] in ("Paris", "Rome") and given.keys() <= {"city", "days"}
    else:
        assert name == "get_time" and given == {}


@pytest.mark.parametrize("model", MODELS)
def test_a_required_call_is_made_whole_and_streamed_alike(client: openai.OpenAI, model: str) -> None:
    asked = ASKED | {"model": model, "tool_choice": "required", "parallel_tool_calls": False}
    for seed in range(3):
        whole = client.chat.completions.create(**asked, seed=seed).choices[0]
        (call,) = whole.message.tool_calls
        _check(call.function.name, call.function.arguments)
        assert whole.finish_reason == "tool_calls" and whole.message.content is None and call.id
        name, arguments, pieces = "", "", 0
        chunks = list(client.chat.completions.create(**asked, seed=seed, stream=True))
        assert chunks[0].choices[0].delta.role == "assistant"
        for chunk in chunks:
            assert not chunk.choices[0].delta.content
            for delta in chunk.choices[0].delta.tool_calls or []:
                assert delta.index == 0 and (delta.id is not None) == (delta.function.name is not None)
                name += delta.function.name or ""
                arguments += delta.function.arguments or ""
                pieces += 1
        assert (name, arguments) == (call.function.name, call.function.arguments) and pieces > 1
        assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("model", MODELS)
def test_a_named_function_is_the_one_that_is_called(client: openai.OpenAI, model: str) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    for seed in range(3):
        answer = client.chat.completions.create(**ASKED, model=model, tool_choice=choice, seed=seed).choices[0]
        assert [call.function.name for call in answer.message.tool_calls] == ["get_weather"]
        _check("get_weather", answer.message.tool_calls[0].function.arguments)


def test_several_calls_have_ids_and_indices_of_their_own(client: openai.OpenAI) -> None:
    bias = {str(bpe_tokenizer().token_to_id("<|im_end|>")): -100}
    asked = ASKED | {"model": "hermes", "tool_choice": "required", "max_tokens": 160, "logit_bias": bias}
    for seed in range(60):  # a random model says when it has called enough
        calls = client.chat.completions.create(**asked, seed=seed).choices[0].message.tool_calls
        if len(calls) > 1:
            break
    assert len(calls) > 1 and len({call.id for call in calls}) == len(calls)
    streamed: dict[int, str] = {}
    for chunk in client.chat.completions.create(**asked, seed=seed, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            streamed[delta.index] = streamed.get(delta.index, "") + (delta.function.arguments or "")
    assert list(streamed.values()) == [call.function.arguments for call in calls]


def test_text_without_a_call_stays_text(client: openai.OpenAI) -> None:
    asked = {**ASKED, "model": "hermes", "max_tokens": 30, "seed": 3}
    answer = client.chat.completions.create(**asked).choices[0]
    assert answer.message.tool_calls is None and answer.message.content and answer.finish_reason == "length"
    streamed = client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == answer.message.content
    none = client.chat.completions.create(**{**asked, "tool_choice": "none"})
    assert none.usage.prompt_tokens < 40  # the tools are not shown


def test_strict_functions_are_followed_when_the_model_chooses(client: openai.OpenAI) -> None:
    """The opening sign is made likely; what comes behind it must then follow the schema."""
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    bias = {str(bpe_tokenizer().token_to_id("<tool_call>")): 12.0}
    called = 0
    for seed in range(4):
        answer = client.chat.completions.create(
            **ASKED | {"tools": [strict], "parallel_tool_calls": False}, model="hermes", seed=seed, logit_bias=bias
        )
        for call in answer.choices[0].message.tool_calls or []:
            _check(call.function.name, call.function.arguments)
            assert answer.choices[0].finish_reason == "tool_calls" and answer.usage.completion_tokens < 300
            called += 1
    assert called


def test_a_model_whose_template_takes_no_tools_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ASKED, model="shakespeare")
    assert refused.value.param == "tools" and "template" in refused.value.message


@pytest.mark.parametrize(
    "fields,param",
    [
        ({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice.function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [WEATHER], "tool_choice": "required", "min_tokens": 2}, "min_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "objekt"}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
    ],
)
def test_tools_that_cannot_be_used_are_a_400(chat_server: Server, fields: dict[str, Any], param: str) -> None:
    response = chat_server.post("/v1/chat/completions", {**ASKED, "model": "hermes", **fields})
    assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text


@tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return f"It is sunny in {city}."


class Verdict(BaseModel):
    """What was decided."""

    answer: Literal["yes", "no"]
    votes: Literal[1, 2, 3]


@pytest.fixture
def chain(chat_server: Server) -> ChatOpenAI:
    return ChatOpenAI(
        model="hermes", base_url=chat_server.url + "/v1", api_key="unused", max_retries=0, temperature=0.9, seed=5, max_tokens=200
    )  # fmt: skip


def test_langchain_invokes_streams_and_batches(chain: ChatOpenAI) -> None:
    asked = [SystemMessage("Be brief."), HumanMessage("Who goes there?")]
    whole = chain.invoke(asked, max_tokens=20)
    assert whole.usage_metadata["output_tokens"] == 20 and whole.response_metadata["finish_reason"] == "length"
    pieces = list(chain.stream(asked, max_tokens=20))
    assert "".join(str(piece.content) for piece in pieces) == whole.content and len(pieces) > 5
    assert [answer.content for answer in chain.batch([asked, asked], max_tokens=20)] == [whole.content] * 2


def test_langchain_calls_a_tool_and_goes_on_with_its_answer(chain: ChatOpenAI) -> None:
    bound = chain.bind_tools([get_weather], tool_choice="get_weather")
    asked: list[Any] = [HumanMessage("What is the weather in Paris?")]
    answer = bound.invoke(asked)
    assert isinstance(answer, AIMessage) and [call["name"] for call in answer.tool_calls] == ["get_weather"]
    result = get_weather.invoke(answer.tool_calls[0])
    assert isinstance(result, ToolMessage) and result.content.startswith("It is sunny in")
    final = chain.bind_tools([get_weather], tool_choice="none").invoke([*asked, answer, result], max_tokens=10)
    assert final.usage_metadata["output_tokens"] == 10
    streamed = None
    for piece in bound.stream(asked):
        streamed = piece if streamed is None else streamed + piece
    assert [call["args"] for call in streamed.tool_calls] == [call["args"] for call in answer.tool_calls]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_structured_output(chain: ChatOpenAI, method: str) -> None:
    assert isinstance(chain.with_structured_output(Verdict, method=method).invoke("Shall we?"), Verdict)
