"""A long text is encoded without holding up whoever else wants the interpreter, and refused early where it cannot fit."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from service.api.text import TextCodec
from service.models.loading import EMBEDDED
from tests.chat_checkpoint import bpe_tokenizer

TEXTS = ["", "x", "The quick <tool_call> brown fox\n 🎭 Größe. <|im_end|>" * 7, "a large red circle on a grey background"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    bpe_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("special", [True, False])
def test_ids_are_those_of_the_tokeniser(folder: Path, special: bool) -> None:
    for place in (folder, EMBEDDED / "shakespeare", EMBEDDED / "shapes"):
        codec = TextCodec(str(place))
        for text in TEXTS:
            tokens = codec.tokenizer.encode(text, add_special_tokens=special).ids
            assert codec.encode(text, special) == tokens
            assert codec.decode(tokens) == codec.tokenizer.decode(tokens)
            assert len(text) <= codec.longest_text(max(len(tokens), 1))


def test_other_threads_go_on_while_a_long_text_is_encoded(folder: Path) -> None:
    """With a switch only where the lock is given up, a thread that starts meanwhile gets a turn before the end."""
    codec, ended, turns = TextCodec(str(folder)), threading.Event(), list[bool]()
    text = "The quick brown fox. " * 20_000

    def encode() -> None:
        codec.encode(text)
        ended.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    try:
        thread = threading.Thread(target=encode)
        thread.start()
        turns.append(ended.is_set())
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert turns == [False]
