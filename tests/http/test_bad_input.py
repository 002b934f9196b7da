"""Bad input gets a 4xx that names the field, and the server serves on."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx
import pytest

from tests.http.server import Server

TEXT = {"model": "shakespeare", "prompt": "x", "max_tokens": 2}
IMAGE = {"model": "shapes", "prompt": "a red circle"}
CHAT = {"model": "shakespeare", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
COMPLETIONS, GENERATE, IMAGES = "/v1/completions", "/v1/generate", "/v1/images/generations"
CHATS = "/v1/chat/completions"
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}


def _procedure(name: str, **parameters: Any) -> dict[str, Any]:
    return {"procedure": {"name": name, **parameters}}


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


CASES: list[tuple[str, dict[str, Any], int, str | None]] = [
    (COMPLETIONS, TEXT | {"model": "nobody"}, 404, "model"),
    (COMPLETIONS, TEXT | {"model": "shapes"}, 400, "model"),
    (COMPLETIONS, {"prompt": "x"}, 400, "model"),
    (COMPLETIONS, {"model": "shakespeare"}, 400, "prompt"),
    (COMPLETIONS, TEXT | {"prompt": 5}, 400, "prompt"),
    (COMPLETIONS, TEXT | {"prompt": ""}, 400, "prompt"),
    (COMPLETIONS, TEXT | {"prompt": []}, 400, "prompt"),
    (COMPLETIONS, TEXT | {"prompt": [1, 10**9]}, 400, "prompt"),
    (COMPLETIONS, TEXT | {"prompt": [1, -4]}, 400, "prompt.1"),
    (COMPLETIONS, TEXT | {"prompt": "x" * 5000}, 400, "prompt"),
    (COMPLETIONS, TEXT | {"prompt": ["a", 5]}, 400, "prompt.1"),
    (COMPLETIONS, TEXT | {"prompt": [[1], 5]}, 400, "prompt.1"),
    (COMPLETIONS, TEXT | {"prompt": [[1], [1.5]]}, 400, "prompt.1.0"),
    (COMPLETIONS, TEXT | {"prompt": [True]}, 400, "prompt.0"),
    (COMPLETIONS, TEXT | {"prompt": [1.5] * 200_000}, 400, "prompt"),
    (COMPLETIONS, TEXT | {"stop_token_ids": ["a"] * 200_000}, 400, "stop_token_ids.0"),
    (COMPLETIONS, TEXT | {"logit_bias": {str(i): "a" for i in range(100_000)}}, 400, "logit_bias"),
    (COMPLETIONS, TEXT | {f"field_{i}": 1 for i in range(100_000)}, 400, "field_0"),
    (GENERATE, {"model": "shakespeare", "input_tokens": ["a"] * 200_000}, 400, "input_tokens.0"),
    (CHATS, CHAT | {"messages": [5] * 200_000}, 400, "messages.0"),
    (CHATS, CHAT | {"messages": [{"role": "user", "content": [5] * 200_000}]}, 400, "messages.0.content.0"),
    (CHATS, CHAT | {"messages": [{"role": "user", "content": []}]}, 400, "messages.0.content"),
    (CHATS, CHAT | {"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, 400, "tool_choice.type"),
    (CHATS, CHAT | {"tool_choice": {"type": "function"}}, 400, "tool_choice.function"),
    (CHATS, CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}}, 400,
     "response_format.json_schema.name"),
    (COMPLETIONS, TEXT | {"logit_bias": {"5" * 5000: 1}}, 400, "logit_bias"),
    (COMPLETIONS, TEXT | {"logit_bias": {"9" * 10: 1}}, 400, "logit_bias"),
    (COMPLETIONS, TEXT | {"metadata": _nested(700)}, 400, "metadata"),
    (COMPLETIONS, TEXT | {"structured_outputs": {"json": _nested(700)}}, 400, "structured_outputs"),
    (CHATS, CHAT | {"tools": [{"type": "function", "function": {"name": "f", "parameters": _nested(700)}}]}, 400, "tools"),
    (COMPLETIONS, TEXT | {"max_tokens": 0}, 400, "max_tokens"),
    (COMPLETIONS, TEXT | {"max_tokens": 1_000_000}, 400, "max_tokens"),
    (COMPLETIONS, TEXT | {"max_tokens": "5"}, 400, "max_tokens"),
    (COMPLETIONS, TEXT | {"max_tokens": 10**400}, 400, "max_tokens"),
    (COMPLETIONS, TEXT | {"max_tokens": True}, 400, "max_tokens"),
    (COMPLETIONS, TEXT | {"temperature": -1}, 400, "temperature"),
    (COMPLETIONS, TEXT | {"top_p": 0}, 400, "top_p"),
    (COMPLETIONS, TEXT | {"seed": -1}, 400, "seed"),
    (COMPLETIONS, TEXT | {"seed": 2**63}, 400, "seed"),
    (COMPLETIONS, TEXT | {"n": 0}, 400, "n"),
    (COMPLETIONS, TEXT | {"n": 100}, 400, "n"),
    (COMPLETIONS, TEXT | {"stop": [""]}, 400, "stop.0"),
    (COMPLETIONS, TEXT | {"stop_token_ids": [10**6]}, 400, "stop_token_ids"),
    (COMPLETIONS, TEXT | {"min_tokens": 5}, 400, "min_tokens"),
    (COMPLETIONS, TEXT | {"temprature": 1}, 400, "temprature"),
    (COMPLETIONS, TEXT | {"logprobs": 21}, 400, "logprobs"),
    (COMPLETIONS, TEXT | {"logprobs": 2, "procedure": "block_diffusion"}, 400, "logprobs"),
    (COMPLETIONS, TEXT | {"logprobs": 2, "echo": True, "procedure": "speculative"}, 400, "echo"),
    (COMPLETIONS, TEXT | {"logprobs": 2, "echo": True, "procedure": "block_diffusion"}, 400, "echo"),
    (COMPLETIONS, TEXT | {"max_tokens": 0, "logprobs": 2}, 400, "max_tokens"),
    (COMPLETIONS, TEXT | {"max_tokens": 0, "echo": True, "min_tokens": 1}, 400, "min_tokens"),
    (COMPLETIONS, TEXT | {"logit_bias": {"257": 5}}, 400, "logit_bias"),
    (COMPLETIONS, TEXT | {"logit_bias": {"five": 1}}, 400, "logit_bias"),
    (COMPLETIONS, TEXT | {"logit_bias": {"264": 1}}, 400, "logit_bias"),
    (COMPLETIONS, TEXT | {"logit_bias": {"5": 101}}, 400, "logit_bias.5"),
    (COMPLETIONS, TEXT | {"presence_penalty": 2.1}, 400, "presence_penalty"),
    (COMPLETIONS, TEXT | {"frequency_penalty": -3}, 400, "frequency_penalty"),
    (COMPLETIONS, TEXT | {"best_of": 1, "n": 2}, 400, "best_of"),
    (COMPLETIONS, TEXT | {"best_of": 3, "stream": True}, 400, "best_of"),
    (COMPLETIONS, TEXT | {"best_of": 100}, 400, "best_of"),
    (COMPLETIONS, TEXT | {"best_of": 2, "procedure": "block_diffusion"}, 400, "best_of"),
    (COMPLETIONS, TEXT | {"suffix": "the end"}, 400, "suffix"),
    (COMPLETIONS, TEXT | {"prompt": ["x", ""]}, 400, "prompt.1"),
    (COMPLETIONS, TEXT | {"prompt": [[1], [10**9]]}, 400, "prompt.1"),
    (COMPLETIONS, TEXT | {"prompt": [[1], []]}, 400, "prompt.1"),
    (COMPLETIONS, TEXT | {"prompt": ["x"] * 2000}, 400, "prompt"),
    (COMPLETIONS, TEXT | {"structured_outputs": {}}, 400, "structured_outputs"),
    (COMPLETIONS, TEXT | {"structured_outputs": {"regex": "a", "choice": ["b"]}}, 400, "structured_outputs"),
    (COMPLETIONS, TEXT | {"structured_outputs": {"regex": "(a"}}, 400, "structured_outputs.regex"),
    (COMPLETIONS, TEXT | {"structured_outputs": {"choice": []}}, 400, "structured_outputs.choice"),
    (COMPLETIONS, TEXT | {"structured_outputs": {"grammar": "root ::= missing"}}, 400, "structured_outputs.grammar"),
    (COMPLETIONS, TEXT | {"structured_outputs": {"grammar": "((("}}, 400, "structured_outputs.grammar"),
    (COMPLETIONS, TEXT | {"structured_outputs": {"json": {"type": "objekt"}}}, 400, "structured_outputs.json"),
    (COMPLETIONS, TEXT | {"structured_outputs": {"json": "{"}}, 400, "structured_outputs.json"),
    (COMPLETIONS, TEXT | {"structured_outputs": {"regex": "a"}, "min_tokens": 1}, 400, "min_tokens"),
    (COMPLETIONS, TEXT | {"structured_outputs": {"regex": "a"}, "ignore_eos": True}, 400, "ignore_eos"),
    (COMPLETIONS, TEXT | {"structured_outputs": {"regex": "a"}, "procedure": "block_diffusion"}, 400, "structured_outputs"),
    (GENERATE, TEXT | {"structured_outputs": {"regex": "(a"}}, 400, "structured_outputs.regex"),
    (GENERATE, TEXT | {"logprobs": 1, "procedure": "block_diffusion"}, 400, "logprobs"),
    (GENERATE, IMAGE | {"presence_penalty": 1}, 400, "presence_penalty"),
    (COMPLETIONS, TEXT | {"deadline_ms": 0}, 400, "deadline_ms"),
    (COMPLETIONS, TEXT | _procedure("magic"), 400, "procedure.name"),
    (COMPLETIONS, TEXT | _procedure("euler"), 400, "procedure.name"),
    (COMPLETIONS, TEXT | _procedure("autoregressive", steps=2), 400, "procedure.steps"),
    (COMPLETIONS, TEXT | _procedure("block_diffusion", block_length=7), 400, "procedure.block_length"),
    (COMPLETIONS, TEXT | _procedure("block_diffusion", threshold=1.5), 400, "procedure.threshold"),
    (COMPLETIONS, TEXT | _procedure("block_diffusion", rule="luck"), 400, "procedure.rule"),
    ("/v1/chat/completions", CHAT | {"messages": []}, 400, "messages"),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": "king", "content": "x"}]}, 400, "messages.0.role"),
    (CHATS, CHAT | {"tools": [{}]}, 400, "tools.0.type"),
    (CHATS, CHAT | {"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
    (CHATS, CHAT | {"tool_choice": "required"}, 400, "tool_choice"),
    (CHATS, CHAT | {"response_format": {"type": "xml"}}, 400, "response_format.type"),
    (CHATS, CHAT | {"response_format": {"type": "json_object", "json_schema": {"name": "a", "schema": {}}}}, 400,
     "response_format.json_schema"),
    (CHATS, CHAT | {"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema"),
    (
        CHATS,
        CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}},
        400,
        "response_format.json_schema.schema",
    ),
    (CHATS, CHAT | {"response_format": {"type": "json_object"}, "procedure": "block_diffusion"}, 400, "response_format"),
    (CHATS, CHAT | {"top_logprobs": 2}, 400, "top_logprobs"),
    (CHATS, CHAT | {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
    (CHATS, CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content.0.type"),
    (CHATS, CHAT | {"messages": [{"role": "user"}]}, 400, "messages.0.content"),
    (CHATS, CHAT | {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.tool_call_id"),
    (CHATS, CHAT | {"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, 400, "messages.0.tool_calls"),
    (
        CHATS,
        CHAT | {"messages": [{"role": "assistant", "tool_calls": [CALL]}]},
        400,
        "messages.0.tool_calls.0.function.arguments",
    ),
    (CHATS, CHAT | {"continue_final_message": True, "add_generation_prompt": True}, 400, "continue_final_message"),
    *(
        (CHATS, CHAT | {name: value}, 400, name)
        for name, value in {
            "audio": {"voice": "x", "format": "wav"}, "modalities": ["text", "audio"], "functions": [{"name": "f"}],
            "function_call": {"name": "f"}, "moderation": {"model": "x"}, "prediction": {"type": "content", "content": "x"},
            "prompt_cache_options": {"mode": "explicit"}, "prompt_cache_retention": "24h", "reasoning_effort": "high",
            "verbosity": "low", "web_search_options": {}, "store": True, "service_tier": "flex",
        }.items()
    ),
    (IMAGES, IMAGE | {"size": "33x32"}, 400, "size"),
    (IMAGES, IMAGE | {"size": "huge"}, 400, "size"),
    (IMAGES, IMAGE | {"prompt": ""}, 400, "prompt"),
    (IMAGES, IMAGE | {"prompt": "a red unicorn"}, 400, "prompt"),
    (IMAGES, IMAGE | {"prompt": "red " * 500}, 400, "prompt"),
    (IMAGES, IMAGE | {"partial_images": 4, "stream": True}, 400, "partial_images"),
    (IMAGES, IMAGE | {"procedure": {"name": "euler", "": 1}}, 400, "procedure"),
    (IMAGES, IMAGE | {"partial_images": 2, "stream": True, "num_inference_steps": 2}, 400, "partial_images"),
    (IMAGES, IMAGE | {"partial_images": 2}, 400, "partial_images"),
    (IMAGES, IMAGE | {"num_inference_steps": 0}, 400, "num_inference_steps"),
    (IMAGES, IMAGE | {"num_inference_steps": 10**400}, 400, "num_inference_steps"),
    (IMAGES, IMAGE | {"guidance_scale": 99}, 400, "guidance_scale"),
    (IMAGES, IMAGE | {"negative_prompt": "blue square"}, 400, "negative_prompt"),
    (IMAGES, IMAGE | {"negative_prompt": "blue square", "guidance_scale": 1} | _procedure("euler"), 400, "negative_prompt"),
    (IMAGES, IMAGE | {"prompt": "\ud800"}, 400, "prompt"),
    (IMAGES, IMAGE | {"num_inference_steps": 4} | _procedure("euler", steps=5), 400, "num_inference_steps"),
    (IMAGES, IMAGE | {"response_format": "url"}, 400, "response_format"),
    (IMAGES, IMAGE | _procedure("autoregressive"), 400, "procedure.name"),
    (GENERATE, IMAGE | _procedure("euler", steps=0), 400, "procedure.steps"),
    (GENERATE, IMAGE | _procedure("euler", steps=10**9), 400, "procedure.steps"),
    (GENERATE, IMAGE | _procedure("euler", steps=4.5), 400, "procedure.steps"),
    (GENERATE, IMAGE | _procedure("euler", guidance=-1), 400, "procedure.guidance"),
    (GENERATE, IMAGE | _procedure("flow_map", guidance=0.0), 400, "procedure.guidance"),
    (GENERATE, IMAGE | _procedure("ddim", eta="much"), 400, "procedure.eta"),
    (GENERATE, IMAGE | {"max_tokens": 4}, 400, "max_tokens"),
    (GENERATE, IMAGE | {"temperature": 1.0}, 400, "temperature"),
    (GENERATE, TEXT | {"size": "32x32"}, 400, "size"),
    (GENERATE, TEXT | {"input_tokens": [1]}, 400, "prompt"),
    (GENERATE, {"model": "shakespeare", "max_tokens": 3}, 400, "prompt"),
    (GENERATE, IMAGE | {"preview_every": 2}, 400, "preview_every"),
    (GENERATE, IMAGE | {"preview_every": 4, "stream": True}, 400, "preview_every"),
    (GENERATE, IMAGE | {"preview_every": 2**64, "stream": True}, 400, "preview_every"),
    (GENERATE, TEXT | {"top_k": 2**63}, 400, "top_k"),
    (GENERATE, TEXT | {"top_k": 10**30}, 400, "top_k"),
    (GENERATE, TEXT | {"prompt": "half \udc00"}, 400, "prompt"),
    (GENERATE, TEXT | _procedure("autoregressive", **{"\ud800": 1}), 400, "procedure"),
    (GENERATE, TEXT | _procedure("block_diffusion", eta=0.1), 400, "procedure.eta"),
    (GENERATE, TEXT | _procedure("block_diffusion", threshold=0.5, factor=1.0), 400, "procedure.factor"),
    (GENERATE, TEXT | _procedure("block_diffusion", rule="margin", entropy_bound=0.5), 400, "procedure.entropy_bound"),
    (GENERATE, TEXT | _procedure("block_diffusion", rule="uniform"), 400, "procedure.rule"),
    (GENERATE, TEXT | _procedure("block_diffusion", rule="confidence", threshold=0.5), 400, "procedure.threshold"),
    (GENERATE, TEXT | _procedure("block_diffusion", rule="confidence", steps=17), 400, "procedure.steps"),
    (GENERATE, TEXT | {"list": 1}, 400, "list"),
    (COMPLETIONS, TEXT | {"stream_options": {"include_usage": True}}, 400, "stream_options"),
    (COMPLETIONS, TEXT | {"stop": ""}, 400, "stop"),
    (COMPLETIONS, TEXT | {"repetition_penalty": 1e-300}, 400, "repetition_penalty"),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "\ud83d"}]}, 400, "messages.0.content"),
    ("/v1/chat/completions", CHAT | {"chat_template_kwargs": {"bos_token": "x"}}, 400, "chat_template_kwargs"),
    ("/v1/tokenize", {"model": "shakespeare", "prompt": "\ud800"}, 400, "prompt"),
    ("/v1/tokenize", {"model": "shakespeare"}, 400, "prompt"),
    ("/v1/detokenize", {"model": "shakespeare", "tokens": [10**7]}, 400, "tokens"),
]


@pytest.mark.parametrize(
    "path,body,status,param", CASES, ids=[f"{i}-{path.rsplit('/')[-1]}-{param}" for i, (path, _, _, param) in enumerate(CASES)]
)
def test_bad_input_names_its_field(server: Server, path: str, body: dict[str, Any], status: int, param: str | None) -> None:
    # httpx would refuse to write half a surrogate pair; JSON can spell it.
    response = httpx.post(server.url + path, content=json.dumps(body), headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == status and error["param"] == param, error
    assert error["message"] and error["type"].endswith("_error")
    assert httpx.get(server.url + "/health").status_code == 200


@pytest.mark.parametrize("guidance", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_numbers(server: Server, guidance: str) -> None:
    raw = f'{{"model": "shapes", "prompt": "a red circle", "procedure": {{"name": "euler", "guidance": {guidance}}}}}'
    response = httpx.post(server.url + GENERATE, content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["param"] == "procedure.guidance"


@pytest.mark.parametrize("raw", [b"", b"not json", b'{"model": ', b"[]", b'"text"', b"\xff\xfe", b'{"model": "\xc3'])
def test_a_body_that_is_not_a_json_object(server: Server, raw: bytes) -> None:
    response = httpx.post(server.url + GENERATE, content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 400 and "error" in response.json()


@pytest.mark.parametrize("path,method,status", [("/v1/nothing", "GET", 404), ("/v1/completions", "GET", 405)])
def test_unknown_places_answer_in_the_same_shape(server: Server, path: str, method: str, status: int) -> None:
    response = httpx.request(method, server.url + path)
    assert response.status_code == status and response.json()["error"]["message"]


def test_a_body_that_is_too_large_with_and_without_its_length(server: Server) -> None:
    big = b'{"prompt": "' + b"x" * (5 << 20) + b'"}'
    headers = {"content-type": "application/json"}
    assert httpx.post(server.url + COMPLETIONS, content=big, headers=headers).status_code == 413
    chunks = (big[i : i + 65536] for i in range(0, len(big), 65536))
    with contextlib.suppress(httpx.WriteError):  # the server may hang up while the client is still sending
        assert httpx.post(server.url + COMPLETIONS, content=chunks, headers=headers).status_code == 413
    assert server.post(COMPLETIONS, TEXT).status_code == 200


def test_null_is_the_same_as_not_given(server: Server) -> None:
    nothing = dict.fromkeys(("temperature", "top_p", "n", "stream", "stop", "seed", "max_completion_tokens"))
    assert server.post("/v1/chat/completions", CHAT | nothing).status_code == 200
    assert server.post(IMAGES, IMAGE | dict.fromkeys(("n", "size", "partial_images", "response_format"))).status_code == 200
    assert server.post(GENERATE, IMAGE | {"stop": None, "max_tokens": None}).status_code == 200


def test_json_under_another_content_type_is_refused_and_says_why(server: Server) -> None:
    response = httpx.post(server.url + GENERATE, content=json.dumps(TEXT), headers={"content-type": "text/plain"})
    assert response.status_code == 400 and "Content-Type" in response.json()["error"]["message"]


def test_a_message_gives_what_was_sent_and_what_is_allowed(server: Server) -> None:
    error = server.post(GENERATE, TEXT | _procedure("block_diffusion", rule="luck")).json()["error"]
    assert all(word in error["message"] for word in ("rule", "luck", "threshold", "confidence"))


def test_a_text_that_cannot_fit_is_refused_for_its_characters_before_it_is_encoded(server: Server) -> None:
    for path, body, param in (
        (COMPLETIONS, TEXT | {"prompt": "x" * 1_000_000}, "prompt"),
        (CHATS, CHAT | {"messages": [{"role": "user", "content": "x" * 1_000_000}]}, "messages"),
        (IMAGES, IMAGE | {"prompt": "unicorn " * 100_000}, "prompt"),
    ):
        response = server.post(path, body)
        assert response.status_code == 400 and response.json()["error"]["param"] == param
        assert "characters" in response.json()["error"]["message"]


def test_a_caption_of_unknown_words_names_the_first_five(server: Server) -> None:
    message = server.post(IMAGES, IMAGE | {"prompt": "red u1 u2 u3 u4 u5 u6"}).json()["error"]["message"]
    assert "'u5'" in message and "u6" not in message


def test_a_long_text_is_tokenised_and_comes_back(server: Server) -> None:
    text = "To be, or not to be. " * 5_000
    answer = server.post("/v1/tokenize", {"model": "shakespeare", "prompt": text}).json()
    assert answer["count"] == len(answer["tokens"]) == len(text)
    back = server.post("/v1/detokenize", {"model": "shakespeare", "tokens": answer["tokens"]}).json()
    assert back == {"prompt": text}


@pytest.mark.parametrize(
    "path,body,words",
    [
        (COMPLETIONS, TEXT | {"prompt": 5}, ("a string", "list of strings", "token ids", "lists of token ids", "given: 5")),
        (CHATS, CHAT | {"tool_choice": {"type": "allowed_tools"}}, ("tool_choice.type", "'function'", "allowed_tools")),
        (CHATS, CHAT | {"messages": [{"role": "user", "content": []}]}, ("at least 1 item", "given: []")),
        (CHATS, CHAT | {"messages": ["hello"]}, ("messages.0", "an object")),
        (IMAGES, IMAGE | {"num_inference_steps": 0}, ("num_inference_steps: ", ">= 1", "given: 0")),
        (IMAGES, IMAGE | {"guidance_scale": 100}, ("guidance_scale: ", "100")),
        (IMAGES, IMAGE | {"guidance_scale": 9}, ("guidance_scale: ", "1 to 4")),
    ],
)  # fmt: skip
def test_a_message_is_about_the_clients_own_names(server: Server, path: str, body: Any, words: tuple[str, ...]) -> None:
    message = server.post(path, body).json()["error"]["message"]
    assert all(word in message for word in words), message
    assert not any(ours in message for ours in ("NamedTool", "Message", "TextPart")), message


def test_a_body_may_be_nested_as_deep_as_schemas_are(server: Server) -> None:
    assert server.post(COMPLETIONS, TEXT | {"metadata": _nested(98)}).status_code == 200
