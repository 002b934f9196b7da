"""Canvases over HTTP: what a client sees of one, where it ends, and models whose noise is random tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from service.api.text_output import MASK
from tests.checkpoints import write_decoder
from tests.http.server import Server
from tests.http.test_generate import events

BLOCKS = {"name": "block_diffusion", "block_length": 16}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A small random model for block diffusion without a mask token."""
    folder = tmp_path_factory.mktemp("noisy")
    server = Server(folder / "log", "--model", f"noisy={write_decoder(folder / 'model', mask=None)}")
    yield server
    server.stop()


@pytest.mark.parametrize("rule,forwards", [("uniform", 3 * 6), ("entropy_bound", None)])
def test_a_model_whose_noise_is_random_tokens_is_refined_from_them(noisy: Server, rule: str, forwards: int | None) -> None:
    procedure = {"name": "block_diffusion", "block_length": 8, "rule": rule, "steps": 6}
    body = {"model": "noisy", "prompt": "Who's there?", "max_tokens": 24, "seed": 3, "ignore_eos": True, "procedure": procedure}
    answer = noisy.post("/v1/generate", body).json()
    tokens = answer["outputs"][0]["token_ids"]
    assert len(tokens) == 24 and forwards in (None, answer["usage"]["forwards"]) and answer["usage"]["forwards"] <= 18
    seen = events(noisy, body)
    assert seen[-1][1]["outputs"] == answer["outputs"]
    assert noisy.post("/v1/generate", body | {"seed": 4}).json()["outputs"][0]["token_ids"] != tokens
    # Random tokens that only the network sees are no part of a canvas that accepts them one by one.
    assert rule == "uniform" or all(len(data["positions"]) < 8 for name, data in seen if name == "revision")


def test_rules_and_drafters_that_need_a_mask_token_are_refused_where_there_is_none(noisy: Server) -> None:
    for procedure, field in (
        ({"name": "block_diffusion", "block_length": 8, "rule": "remask"}, "procedure.rule"),
        ({"name": "speculative", "drafter": "mask"}, "procedure.drafter"),
    ):
        answer = noisy.post("/v1/generate", {"model": "noisy", "prompt": "x", "procedure": procedure})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == field


def test_a_stop_string_ends_a_canvas_and_nothing_behind_it_is_shown(server: Server) -> None:
    body = {
        "model": "shakespeare", "prompt": "ROMEO:\n", "max_tokens": 96, "seed": 5, "ignore_eos": True, "procedure": BLOCKS,
    }  # fmt: skip
    free = server.post("/v1/generate", body).json()["outputs"][0]["text"]
    stop = free[36:39]  # inside a canvas
    at = free.index(stop)
    seen = events(server, body | {"stop": stop})
    output = seen[-1][1]["outputs"][0]
    assert output["text"] == free[:at] and output["finish_reason"] == "stop"
    assert "".join(data["text"] for name, data in seen if name == "token") == free[:at]
    length = len(output["token_ids"])
    assert length == len(free[: at + 3].encode()), "tokens behind the stop string are nowhere"
    # No canvas begins behind where the text has ended, nor was one shown once the stop string was there.
    assert all(data["start"] <= 7 + length for name, data in seen if name == "revision")
    last = max(i for i, (name, _) in enumerate(seen) if name == "token")
    assert "revision" not in [name for name, _ in seen[last:]]


def test_through_openais_routes_only_committed_text_flows(server: Server) -> None:
    body = {
        "model": "shakespeare", "prompt": "JULIET:\n", "max_tokens": 64, "seed": 5, "stream": True, "return_token_ids": True,
        "procedure": BLOCKS | {"rule": "confidence", "steps": 16},
    }  # fmt: skip
    pieces, lines = [], []
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            lines.append(line)
            if line.startswith("data: {"):
                pieces += [choice["text"] for choice in json.loads(line[6:])["choices"]]
    whole = server.post("/v1/completions", body | {"stream": False}).json()["choices"][0]["text"]
    assert "".join(pieces) == whole and MASK not in whole
    assert not any(line.startswith("event:") for line in lines)
    assert len([piece for piece in pieces if piece]) <= 64 // 16, "a canvas that may still change was sent"


def test_what_is_not_set_is_told_by_its_position_and_shown_by_a_sign(server: Server) -> None:
    procedure = BLOCKS | {"block_length": 32, "rule": "confidence", "steps": 32}
    body = {"model": "shakespeare", "prompt": "ROMEO:\n", "max_tokens": 256, "seed": 5, "procedure": procedure}
    body["ignore_eos"] = True
    seen = [data for name, data in events(server, body) if name == "revision"]
    assert seen and all(0 < len(data["positions"]) < data["length"] for data in seen)
    for data in seen:
        assert data["start"] <= min(data["positions"]) and max(data["positions"]) < data["start"] + data["length"]
        assert len(data["token_ids"]) == len(data["positions"])
        assert data["text"].count(MASK) >= data["length"] - len(data["positions"]) and "\ufffd" not in data["text"]
