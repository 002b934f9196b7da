"""`stride serve` with the checkpoints that people have: a folder, and a repository in the hub's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.families import VARIANTS, Variant, write_variant
from tests.few import few
from tests.http.server import Server

pytest.importorskip("transformers")

REVISION = "0123456789abcdef0123456789abcdef01234567"
TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer"


def write_tokenizer(folder: Path) -> Tokenizer:
    """A byte-level BPE of 290 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Tokenizer]:
    """A small Qwen2 whose vocabulary has rows that its tokeniser lacks, the model and the tokeniser."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = write_variant(folder, Variant("Qwen2Config", {**VARIANTS["qwen2"].changes, "vocab_size": 304}))
    return folder, model, write_tokenizer(folder)


@pytest.fixture(scope="module")
def hub(checkpoint: tuple[Path, Any, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables for a machine without a network whose cache holds org/tiny."""
    home = tmp_path_factory.mktemp("hub")
    repository = home / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    shutil.copytree(checkpoint[0], repository / "snapshots" / REVISION)
    return {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def doubtful(checkpoint: tuple[Path, Any, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a chat template that is none, and two tokens more than the vocabulary has rows."""
    folder = tmp_path_factory.mktemp("doubtful") / "model"
    shutil.copytree(checkpoint[0], folder)
    (folder / "chat_template.jinja").write_text("{% for message in %}")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"<more-{i}>" for i in range(306 - tokenizer.get_vocab_size())])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def server(
    checkpoint: tuple[Path, Any, Tokenizer], doubtful: Path, hub: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in hub.items():
            patch.setenv(name, value)
        server = Server(
            log, "--model", f"folder={checkpoint[0]},max_model_len=128,kv_memory=1MiB", "--model", "cached=org/tiny",
            "--model", f"pinned=org/tiny,revision={REVISION},quantization=int8,kv_memory=1MiB",
            "--model", f"doubtful={doubtful},kv_memory=1MiB",
        )  # fmt: skip
    yield server
    server.stop()


def test_a_served_checkpoint_says_what_transformers_says(server: Server, checkpoint: tuple[Path, Any, Tokenizer]) -> None:
    _, model, tokenizer = checkpoint
    prompt = tokenizer.encode(TEXT).ids
    # Rows of the vocabulary without a token are never drawn here.
    unknown = list(range(tokenizer.get_vocab_size(), 304))
    expected = model.generate(
        torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0, suppress_tokens=unknown
    )[0, len(prompt) :].tolist()
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    for name in ("folder", "cached"):
        answer = client.completions.create(
            model=name, prompt=TEXT, max_tokens=24, temperature=0, extra_body={"return_token_ids": True, "ignore_eos": True}
        )
        assert answer.choices[0].model_dump()["token_ids"] == expected
        assert answer.choices[0].text == tokenizer.decode(expected)


def test_options_of_a_model_are_its_own(server: Server) -> None:
    listed = {entry["id"]: entry for entry in server._client.get("/v1/models").json()["data"]}
    assert {name: entry["max_model_len"] for name, entry in listed.items()} == {
        "folder": 128, "cached": 256, "pinned": 256, "doubtful": 256,
    }  # fmt: skip
    assert server.post("/v1/completions", {"model": "pinned", "prompt": TEXT, "max_tokens": 5}).status_code == 200


ABSENT = ("org/other", "there is no folder org/other, and org/other is not in the hub's cache, while HF_HUB_OFFLINE is set")


@pytest.mark.parametrize(
    "place,words", few([ABSENT, ("org/tiny,revision=v9", "org/tiny at revision v9 is not in the hub's cache")], ABSENT)
)
def test_what_is_neither_a_folder_nor_cached_ends_the_server_with_the_reason(hub: dict[str, str], place: str, words: str) -> None:
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--model", f"chat={place}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=90, env={**os.environ, **hub})
    assert ended.returncode == 3 and words in ended.stdout + ended.stderr


def expected_scores(model: Any, prompt: list[int]) -> torch.Tensor:
    """Log-probabilities of all tokens behind each of the prompt's, [P, V]."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([prompt])).logits[0].float(), dim=-1)


@pytest.mark.parametrize("stream", [False, True])
def test_an_echoed_prompt_has_the_log_probabilities_that_transformers_gives_it(
    server: Server, checkpoint: tuple[Path, Any, Tokenizer], stream: bool
) -> None:
    _, model, tokenizer = checkpoint
    prompt = tokenizer.encode(TEXT).ids
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    asked: dict[str, Any] = {"model": "folder", "prompt": TEXT, "max_tokens": 3, "echo": True, "logprobs": 4, "temperature": 0}
    asked["extra_body"] = {"ignore_eos": True, "return_token_ids": True}
    text, token_ids = "", list[int]()
    told: dict[str, list[Any]] = {name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    for answer in client.completions.create(**asked, stream=True) if stream else [client.completions.create(**asked)]:
        choice = answer.choices[0]
        text += choice.text
        token_ids += choice.model_dump()["token_ids"]
        for name, entries in told.items():
            entries += getattr(choice.logprobs, name) if choice.logprobs else []
    everything = prompt + token_ids
    assert text == tokenizer.decode(everything) and text.startswith(TEXT)
    logprobs = expected_scores(model, everything)
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    own = [float(logprobs[i, token]) for i, token in enumerate(everything[1:])]
    assert told["token_logprobs"][1:] == pytest.approx(own, abs=2e-4)
    known = range(tokenizer.get_vocab_size())
    for i, best in enumerate(told["top_logprobs"][1:]):
        values = sorted((float(logprobs[i, v]) for v in known), reverse=True)[:4]
        assert sorted(best.values(), reverse=True)[:4] == pytest.approx(values, abs=2e-4)
        assert told["tokens"][i + 1] in best and len(best) <= 5
    assert "".join(told["tokens"][: len(prompt)]) == TEXT and told["text_offset"][len(prompt)] == len(TEXT)
    ends = told["text_offset"][1:]
    for token, start, end in zip(told["tokens"][: len(prompt)], told["text_offset"], ends, strict=False):
        assert text[start:end] == token


@pytest.mark.parametrize("most", [0, 1])
def test_prompts_are_scored_as_evaluation_harnesses_ask_for_it(
    server: Server, checkpoint: tuple[Path, Any, Tokenizer], most: int
) -> None:
    """lm-evaluation-harness: contexts with their continuations as token ids, whose sum of log-probabilities is what counts."""
    _, model, tokenizer = checkpoint
    whole = tokenizer.encode(TEXT).ids
    prompts = [whole[:20], whole[:31], whole[5:9]]
    body = {
        "model": "folder", "prompt": prompts, "temperature": 0, "max_tokens": most, "logprobs": 1, "seed": 1234, "echo": True,
    }  # fmt: skip
    # One ends with its first token, which must have an entry all the same: the harness drops the last.
    drawn = server.post("/v1/generate", {"model": "folder", "input_tokens": prompts[1], "max_tokens": 1, "temperature": 0})
    end = drawn.json()["outputs"][0]["token_ids"]
    answer = server.post("/v1/completions", body | {"stop_token_ids": end}).json()
    assert answer["choices"][1]["finish_reason"] == ("stop" if most else "length")
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        told, logprobs = choice["logprobs"], expected_scores(model, prompt)
        own = [float(logprobs[i, token]) for i, token in enumerate(prompt[1:])]
        stop = -1 if most else None
        assert told["token_logprobs"][1:stop] == pytest.approx(own, abs=2e-4)
        assert all(len(told[name]) == len(prompt) + most for name in told)
        for logprob, top in zip(told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True):
            assert max(top.values()) >= logprob
        if not most:
            assert choice["text"] == tokenizer.decode(prompt)
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))
    alone = server.post("/v1/completions", body | {"prompt": whole[:1], "max_tokens": 0}).json()["choices"][0]
    assert alone["logprobs"]["token_logprobs"] == [None] and alone["finish_reason"] == "length"
    plain = server.post("/v1/completions", {"model": "folder", "prompt": TEXT, "max_tokens": 0, "echo": True}).json()["choices"]
    assert plain[0]["text"] == TEXT and plain[0]["logprobs"] is None


def test_rows_of_the_vocabulary_without_a_token_are_never_told_and_take_no_bias(
    server: Server, checkpoint: tuple[Path, Any, Tokenizer]
) -> None:
    known = checkpoint[2].get_vocab_size()
    body = {"model": "folder", "prompt": TEXT, "max_tokens": 30, "logprobs": 20, "ignore_eos": True}
    entries = server.post("/v1/generate", body).json()["outputs"][0]["logprobs"]
    assert len(entries) == 30 and all(token < known for entry in entries for token, _ in entry["top"])
    answer = server.post("/v1/completions", body | {"logit_bias": {str(known): 50}})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "logit_bias"
    assert f"never draws {known}" in answer.json()["error"]["message"]
    beyond = server.post("/v1/completions", body | {"prompt": [5, 304]})
    assert beyond.status_code == 400 and "token 304 is outside the vocabulary" in beyond.json()["error"]["message"]


def test_what_is_wrong_with_a_tokeniser_and_its_template_is_said_at_the_start(server: Server, doubtful: Path) -> None:
    server.until(lambda: "the chat template is broken" in server._log.read_text())
    log = server._log.read_text()
    assert f"{doubtful}: the chat template is broken, chats are refused: line 1: " in log
    assert "doubtful: tokenizer.json has 2 ids, from 304 on, beyond the model's vocabulary of 304" in log
    assert log.count("is broken") == 1 and log.count("beyond the model's vocabulary") == 1
    chat = server.post("/v1/chat/completions", {"model": "doubtful", "messages": [{"role": "user", "content": "x"}]})
    assert chat.status_code == 400 and "chat template is broken" in chat.json()["error"]["message"]
    numbers = [(i, server.post("/v1/completions", {"model": "doubtful", "prompt": f"a<more-{i}>"}).status_code) for i in (13, 14)]
    assert numbers == [(13, 200), (14, 400)]
