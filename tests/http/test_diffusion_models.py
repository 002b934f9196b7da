"""Diffusion language models over HTTP: chat, streams, and refusals that teach."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.diffusion_checkpoints import LAYOUTS, write_layout
from tests.diffusion_gemma import write_gemma
from tests.http.server import Server
from tests.http.test_checkpoints import write_tokenizer

pytest.importorskip("transformers")

TEMPLATE = """{% for message in messages %}<s>{{ message.role }}: {{ message.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"""  # noqa: E501
SERVED = ("sdar", "fast_dllm", "llada", "dream", "llada2")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, arguments = tmp_path_factory.mktemp("diffusion"), []
    for name in (*SERVED, "long", "diffusion_gemma"):
        if name == "diffusion_gemma":
            write_gemma(folder / name)
        else:
            write_layout(folder / name, "llada" if name == "long" else name)
        write_tokenizer(folder / name)
        words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": TEMPLATE}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(words))
        arguments += ["--model", f"{name}={folder / name},kv_memory=1MiB"]
    config = folder / "long" / "config.json"
    config.write_text(config.read_text().replace('"max_sequence_length": 256', '"max_sequence_length": 512'))
    server = Server(folder / "log", *arguments)
    yield server
    server.stop()


@pytest.mark.parametrize("name", [*SERVED, "diffusion_gemma"])
def test_a_chat_streamed_and_not_is_the_same_text_and_the_second_time_comes_from_the_cache(server: Server, name: str) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    messages = [{"role": "user", "content": "To be, or not to be, that is the question: whether 'tis nobler"}]
    asked = {"model": name, "messages": messages, "max_tokens": 30, "seed": 5, "extra_body": {"ignore_eos": True}}
    whole = client.chat.completions.create(**asked)
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(pieces) == whole.choices[0].message.content and whole.usage.completion_tokens == 30
    again = client.chat.completions.create(**asked)
    assert again.choices[0].message.content == whole.choices[0].message.content
    shared = again.usage.prompt_tokens_details
    assert name in ("llada", "dream") or shared.cached_tokens >= 32


@pytest.mark.parametrize("name", SERVED)
def test_what_the_network_cannot_do_is_a_400_that_teaches(server: Server, name: str) -> None:
    listed = {entry["id"]: entry for entry in server._client.get("/v1/models").json()["data"]}[name]
    assert listed.get("drafters", []) == []
    assert "next(tokens)" not in listed["signature"] and not {"autoregressive", "speculative"} & set(listed["procedures"])
    body = {"model": name, "prompt": "To be", "procedure": {"name": "autoregressive"}}
    error = server.post("/v1/generate", body).json()["error"]
    assert error["param"] == "procedure.name" and "next(tokens)" in error["message"]
    assert listed["procedures"][0] in error["message"]
    body["procedure"] = {"name": listed["procedures"][0], "rule": "uniform"}
    error = server.post("/v1/generate", body).json()["error"]
    assert error["param"] == "procedure.rule" and "mask token" in error["message"]


@pytest.mark.parametrize("name", ["sdar", "fast_dllm", "llada2"])
def test_a_block_has_the_length_that_the_network_was_trained_for(server: Server, name: str) -> None:
    length = LAYOUTS[name].config.get("block_size") or LAYOUTS[name].config["bd_size"]
    body = {"model": name, "prompt": "To be", "procedure": {"name": "block_diffusion", "block_length": 16}}
    answer = server.post("/v1/generate", body)
    assert answer.status_code == 400 and f"knows: {length}" in answer.json()["error"]["message"]
    body["procedure"] = {"name": "block_diffusion", "sub_block_length": 3}
    error = server.post("/v1/generate", body).json()["error"]
    assert error["param"] == "procedure.sub_block_length" and str(length) in error["message"]


def test_without_a_limit_a_whole_sequence_is_not_as_long_as_the_context(server: Server) -> None:
    asked = {"messages": [{"role": "user", "content": "To be"}], "ignore_eos": True, "procedure": {"name": "masked_diffusion"}}
    answer = server.post("/v1/chat/completions", {**asked, "model": "long"})
    assert answer.json()["usage"]["completion_tokens"] == 256
    assert server.post("/v1/generate", {"model": "long", "prompt": "To be", "max_tokens": 300}).status_code == 200


def test_rules_and_parameters_that_diffusion_gemma_has_no_use_for_are_refused_by_name(server: Server) -> None:
    wrong = {"rule": {"rule": "threshold"}, "block_length": {"block_length": 16}, "t_max": {"t_max": None}}
    for field, changes in wrong.items():
        body = {"model": "diffusion_gemma", "prompt": "To be", "procedure": {"name": "block_diffusion", **changes}}
        answer = server.post("/v1/generate", body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == f"procedure.{field}"
    body = {"model": "sdar", "prompt": "To be", "procedure": {"name": "block_diffusion", "rule": "entropy_bound"}}
    body["procedure"] |= {"confidence_threshold": 0.1}
    assert server.post("/v1/generate", body).json()["error"]["param"] == "procedure.confidence_threshold"
