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
def server(
    checkpoint: tuple[Path, Any, Tokenizer], hub: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in hub.items():
            patch.setenv(name, value)
        server = Server(
            log, "--model", f"folder={checkpoint[0]},max_model_len=128,kv_memory=1MiB", "--model", "cached=org/tiny",
            "--model", f"pinned=org/tiny,revision={REVISION},quantization=int8,kv_memory=1MiB",
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
    assert {name: entry["max_model_len"] for name, entry in listed.items()} == {"folder": 128, "cached": 256, "pinned": 256}
    assert server.post("/v1/completions", {"model": "pinned", "prompt": TEXT, "max_tokens": 5}).status_code == 200


@pytest.mark.parametrize(
    "place,words",
    [
        ("org/other", "there is no folder org/other, and org/other is not in the hub's cache, while HF_HUB_OFFLINE is set"),
        ("org/tiny,revision=v9", "org/tiny at revision v9 is not in the hub's cache"),
    ],
)
def test_what_is_neither_a_folder_nor_cached_ends_the_server_with_the_reason(
    hub: dict[str, str], place: str, words: str
) -> None:
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--model", f"chat={place}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=90, env={**os.environ, **hub})
    assert ended.returncode == 3 and words in ended.stdout + ended.stderr
