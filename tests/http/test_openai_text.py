"""OpenAI's text routes through the unmodified `openai` client: log-probabilities, biases, penalties, prompts, forms."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from tests.chat_checkpoint import bpe_tokenizer
from tests.http.server import Server

USER = [{"role": "user", "content": "What is the weather?"}]
CHAT: dict[str, Any] = {"model": "hermes", "messages": USER, "max_tokens": 24, "seed": 5}
TEXT: dict[str, Any] = {"model": "shakespeare", "prompt": "ROMEO:\n", "max_tokens": 12, "seed": 5}


@pytest.fixture
def client(chat_server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=chat_server.url + "/v1", api_key="unused", max_retries=0)


def test_log_probabilities_of_a_chat_are_the_same_streamed_and_whole(client: openai.OpenAI) -> None:
    asked = CHAT | {"logprobs": True, "top_logprobs": 3, "extra_body": {"return_token_ids": True}}
    whole = client.chat.completions.create(**asked).choices[0]
    content = whole.logprobs.content
    assert len(content) == len(whole.token_ids) == 24
    for entry in content:
        assert len(entry.top_logprobs) == 3 and entry.logprob <= entry.top_logprobs[0].logprob <= 0
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True) and sum(map(math.exp, values)) <= 1 + 1e-4
    # A generated character may be a token's bytes in part: together they are the text.
    assert b"".join(bytes(entry.bytes) for entry in content).decode(errors="replace") == whole.message.content
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    streamed = [entry for choice in chunks if choice.logprobs for entry in choice.logprobs.content]
    assert [e.model_dump() for e in streamed] == [e.model_dump() for e in content]


def test_log_probabilities_of_a_completion_have_offsets_and_the_drawn_token(client: openai.OpenAI) -> None:
    asked = TEXT | {"logprobs": 2, "temperature": 1.5}
    choice = client.completions.create(**asked).choices[0]
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text and told.text_offset == list(range(12))
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert top[token] == logprob and 2 <= len(top) <= 3
    chunks = [chunk.choices[0].logprobs for chunk in client.completions.create(**asked, stream=True)]
    assert [t for logprobs in chunks if logprobs for t in logprobs.token_logprobs] == told.token_logprobs
    greedy = client.completions.create(**asked | {"temperature": 0}).choices[0].logprobs
    assert all(logprob == max(top.values()) for logprob, top in zip(greedy.token_logprobs, greedy.top_logprobs, strict=True))


def test_log_probabilities_do_not_move_with_temperature_bias_or_penalties(client: openai.OpenAI) -> None:
    asked = TEXT | {"max_tokens": 1, "logprobs": 5}
    plain = client.completions.create(**asked).choices[0].logprobs.top_logprobs[0]
    bent = client.completions.create(
        **asked | {"temperature": 0.3, "logit_bias": {"90": 100}, "extra_body": {"top_k": 3, "repetition_penalty": 1.5}}
    ).choices[0]
    both = plain.keys() & bent.logprobs.top_logprobs[0].keys()
    assert bent.text == "Z" and len(both) >= 5
    assert {k: bent.logprobs.top_logprobs[0][k] for k in both} == pytest.approx({k: plain[k] for k in both})


def test_a_bias_forces_and_forbids_tokens(client: openai.OpenAI) -> None:
    forced = client.completions.create(**TEXT, logit_bias={"90": 100}).choices[0].text
    assert forced == "Z" * 12
    free = client.completions.create(**TEXT | {"temperature": 0}).choices[0].text
    without = client.completions.create(**TEXT | {"temperature": 0}, logit_bias={str(ord(free[0])): -100}).choices[0].text
    assert free[0] not in without


def test_penalties_drive_repetition_out(client: openai.OpenAI) -> None:
    asked = TEXT | {"max_tokens": 60, "temperature": 0}
    bias = {str(ord(letter)): 20.0 for letter in "abcdefghij"}
    stuck = client.completions.create(**asked, logit_bias=bias).choices[0].text
    spread = client.completions.create(**asked, logit_bias=bias, frequency_penalty=2, presence_penalty=2).choices[0].text
    assert len(set(spread)) > len(set(stuck)) and max(map(spread.count, spread)) < max(map(stuck.count, stuck))


def test_several_prompts_are_choices_in_order_and_alike_alone(client: openai.OpenAI) -> None:
    prompts = ["ROMEO:\n", "JULIET:\n", "First Citizen:\n"]
    answer = client.completions.create(**TEXT | {"prompt": prompts}, n=2)
    assert [choice.index for choice in answer.choices] == list(range(6))
    for i, prompt in enumerate(prompts):
        alone = client.completions.create(**TEXT | {"prompt": prompt}, n=2)
        assert [c.text for c in alone.choices] == [c.text for c in answer.choices[2 * i : 2 * i + 2]]
    assert answer.usage.prompt_tokens == sum(map(len, prompts)) and answer.usage.completion_tokens == 6 * 12
    ids = client.completions.create(**TEXT | {"prompt": [list(p.encode()) for p in prompts]}, n=2)
    assert [c.text for c in ids.choices] == [c.text for c in answer.choices]
    streamed = [""] * 6
    for chunk in client.completions.create(**TEXT | {"prompt": prompts}, n=2, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [c.text for c in answer.choices]


def test_best_of_shows_those_with_the_highest_mean_log_probability(client: openai.OpenAI) -> None:
    asked = TEXT | {"temperature": 1.3, "logprobs": 0}
    everyone = client.completions.create(**asked, n=6).choices
    mean = {c.text: sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs) for c in everyone}
    best = client.completions.create(**asked | {"logprobs": None}, n=2, best_of=6)
    assert [c.text for c in best.choices] == sorted(mean, key=lambda text: -mean[text])[:2]
    assert best.usage.completion_tokens == 6 * 12 and best.choices[0].logprobs is None


def test_a_token_that_ends_the_text_has_no_entry_where_no_prompt_is_scored(client: openai.OpenAI) -> None:
    asked = {"model": "hermes", "prompt": "What", "max_tokens": 60, "logprobs": 1, "seed": 5}
    free = client.completions.create(**asked, extra_body={"return_token_ids": True, "ignore_eos": True}).choices[0].token_ids
    extra = {"return_token_ids": True, "stop_token_ids": [free[10]]}
    whole = client.completions.create(**asked, extra_body=extra).choices[0]
    assert whole.finish_reason == "stop" and whole.token_ids == free[: free.index(free[10])]
    chunks = [chunk.choices[0] for chunk in client.completions.create(**asked, extra_body=extra, stream=True)]
    for choices in ([whole], chunks):
        told = [token for choice in choices if choice.logprobs for token in choice.logprobs.tokens]
        assert len(told) == len(whole.token_ids)


def test_an_echo_is_the_prompt_as_it_was_given(client: openai.OpenAI) -> None:
    prompt = "<|im_start|>user\nHello  <|im_end|>"
    answer = client.completions.create(model="hermes", prompt=prompt, echo=True, max_tokens=1, temperature=0)
    alone = client.completions.create(model="hermes", prompt=prompt, max_tokens=1, temperature=0)
    assert answer.choices[0].text == prompt + alone.choices[0].text


def test_tokens_behind_a_stop_string_are_nowhere(client: openai.OpenAI) -> None:
    body = {"procedure": {"name": "block_diffusion", "block_length": 16}, "return_token_ids": True}
    asked = TEXT | {"max_tokens": 96, "extra_body": body}
    free = client.completions.create(**asked).choices[0]
    stop = free.text[33:36]
    at = free.text.index(stop)
    answer = client.completions.create(**asked, stop=stop)
    choice = answer.choices[0]
    assert choice.text == free.text[:at] and choice.finish_reason == "stop"
    assert choice.token_ids == free.token_ids[: at + 3] and answer.usage.completion_tokens == at + 3


def test_usage_and_the_fingerprint(client: openai.OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(**CHAT, stream=True, stream_options=options))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 24
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens is not None
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[0] == 0
    whole = client.chat.completions.create(**CHAT)
    assert whole.system_fingerprint == chunks[0].system_fingerprint and whole.system_fingerprint.startswith("fp_")
    other = client.completions.create(**TEXT)
    assert other.system_fingerprint != whole.system_fingerprint
    assert whole.usage.prompt_tokens == len(bpe_tokenizer().encode(
        "<|im_start|>user\nWhat is the weather?<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
    ).ids)  # fmt: skip


def test_a_chat_without_a_limit_may_fill_the_context(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "weather" + " weather" * 1200}]
    asked = {"model": "hermes", "messages": long, "logit_bias": {"40": 100}, "extra_body": {"ignore_eos": True}}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].finish_reason == "length" and answer.usage.total_tokens == 1536
    assert answer.usage.completion_tokens > 256


def test_what_a_model_says_of_its_sampling_holds_where_the_request_is_silent(chat_server: Server, client: openai.OpenAI) -> None:
    card = next(m for m in httpx.get(chat_server.url + "/v1/models").json()["data"] if m["id"] == "greedy")
    assert card["sampling_defaults"]
    asked = {**CHAT, "model": "greedy"}
    first, second = (client.chat.completions.create(**asked | {"seed": seed}).choices[0].message.content for seed in (1, 2))
    assert first == second  # top_k 1
    free = [
        client.chat.completions.create(**asked | {"seed": seed, "extra_body": {"top_k": 0}}).choices[0].message.content
        for seed in (1, 2)
    ]
    assert free[0] != free[1]


def test_messages_of_every_role_reach_the_template(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "now?"}], "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "21"},
    ]
    answer = client.chat.completions.create(**CHAT | {"messages": messages, "max_tokens": 1})
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat now?<|im_end|>\n<|im_start|>assistant\n"
        '\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n21\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    assert answer.usage.prompt_tokens == len(bpe_tokenizer().encode(expected, add_special_tokens=False).ids)
    quiet = client.chat.completions.create(
        **CHAT | {"max_tokens": 1, "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    )
    assert quiet.usage.prompt_tokens > client.chat.completions.create(**CHAT | {"max_tokens": 1}).usage.prompt_tokens


class Scene(BaseModel):
    kind: Literal["calm", "storm"]
    ships: Annotated[list[Literal["Argo", "Beagle"]], Field(max_length=3)]
    rating: Literal[1, 2, 3]


@pytest.mark.parametrize("model", ["hermes", "shakespeare"])
def test_a_schema_is_followed_whatever_the_weights_say(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "messages": USER, "seed": 1, "max_tokens": 400}
    answer = client.chat.completions.parse(**asked, response_format=Scene)
    assert answer.choices[0].finish_reason == "stop" and isinstance(answer.choices[0].message.parsed, Scene)
    text = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(
            **asked, stream=True, response_format={"type": "json_schema", "json_schema": {
                "name": "scene", "schema": Scene.model_json_schema() | {"additionalProperties": False}, "strict": True}}
        )
    )  # fmt: skip
    assert Scene.model_validate_json(text)


def test_a_json_object_a_choice_a_regex_and_a_grammar(client: openai.OpenAI) -> None:
    def content(**fields: Any) -> str:
        answer = client.chat.completions.create(**CHAT | {"max_tokens": 300, "logit_bias": {"93": 3}}, **fields)
        assert answer.choices[0].finish_reason == "stop", answer
        return answer.choices[0].message.content

    def outputs(**form: Any) -> str:
        return content(extra_body={"structured_outputs": form})

    end_early = {"type": "object", "properties": {"a": {"enum": [True]}}, "additionalProperties": False}
    for schema in (end_early, json.dumps(end_early)):
        assert json.loads(outputs(json=schema)) in ({}, {"a": True})
    assert outputs(choice=["red", "gre en", "blü"]) in ("red", "gre en", "blü")
    assert outputs(regex=r"[A-Z]{2}-\d{4}")[2] == "-"
    assert outputs(grammar='root ::= "a" ("b" | "c") "d"') in ("abd", "acd")
    assert outputs(grammar='start: "x" DIGIT "y"\nDIGIT: /[0-9]/')[::2] == "xy"


def test_any_json_object(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="shakespeare", prompt="{", max_tokens=200, temperature=0, extra_body={"response_format": {"type": "json_object"}},
        logit_bias={"125": 60},
    )  # fmt: skip
    assert json.loads(answer.choices[0].text) == {} and answer.choices[0].finish_reason == "stop"


def test_a_cancelled_output_stopped_in_openais_words(chat_server: Server) -> None:
    body = {"model": "shakespeare", "prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", chat_server.url + "/v1/completions", json=body, timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        httpx.delete(f"{chat_server.url}/v1/requests/{response.headers['x-request-id']}")
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_generate_shares_sampling_forms_and_log_probabilities(chat_server: Server) -> None:
    body = {"model": "hermes", "prompt": "x", "max_tokens": 30, "logprobs": 1, "structured_outputs": {"regex": "[ab]{4}c"}}
    output = chat_server.post("/v1/generate", body).json()["outputs"][0]
    assert output["text"][4] == "c" and len(output["logprobs"]) == len(output["token_ids"])
    assert all(entry["logprob"] <= entry["top"][0][1] for entry in output["logprobs"])


def test_the_documentation_says_400_and_event_streams(chat_server: Server) -> None:
    paths = httpx.get(chat_server.url + "/openapi.json").json()["paths"]
    assert not [path for path, ways in paths.items() for way in ways.values() if "422" in way["responses"]]
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/generate", "/v1/images/generations"):
        assert "text/event-stream" in paths[path]["post"]["responses"]["200"]["content"]
        assert "400" in paths[path]["post"]["responses"]


@pytest.mark.parametrize("temperature", [1e-40, 9e-6])
def test_a_temperature_next_to_nothing_is_the_likeliest_token(client: openai.OpenAI, temperature: float) -> None:
    asked = {"model": "hermes", "prompt": "The quick", "max_tokens": 12, "logprobs": 1}
    coldest = client.completions.create(**asked, temperature=0)
    close = client.completions.create(**asked, temperature=temperature, seed=3)
    assert close.choices[0].text == coldest.choices[0].text
