from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.http.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The two embedded models, as `stride serve` without arguments serves them."""
    server = Server(tmp_path_factory.mktemp("server") / "log")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def chat_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tiny chat model with a BPE tokeniser, under chat templates of three families; once more with defaults of its own
    for sampling; and the embedded text model, whose template takes no tools."""
    from tests.chat_checkpoint import HERMES, LLAMA, MISTRAL, write_chat_model

    def model(name: str, template: str, **generation: object) -> str:
        return f"{name}={write_chat_model(tmp_path_factory.mktemp(name) / 'model', template, generation)}"

    models = [
        model("hermes", HERMES),
        model("llama", LLAMA),
        model("mistral", MISTRAL),
        model("greedy", HERMES, top_k=1, temperature=0.7),
        "shakespeare",
    ]
    flags = [word for spec in models for word in ("--model", spec)]
    server = Server(tmp_path_factory.mktemp("chat") / "log", *flags)
    yield server
    server.stop()
