"""/v1/generate: every event in order, and the same object streamed and not."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.http.server import Server

MASK = "▁"


def events(server: Server, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    out, name = [], ""
    with httpx.stream("POST", server.url + "/v1/generate", json={**body, "stream": True}, timeout=60) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                out.append((name, json.loads(line[6:])))
    return out


def test_a_canvas_is_revised_then_committed(server: Server) -> None:
    procedure = {"name": "block_diffusion", "block_length": 32, "rule": "confidence", "steps": 32}
    body = {"model": "shakespeare", "prompt": "JULIET:\n", "max_tokens": 128, "seed": 2, "ignore_eos": True}
    body["procedure"] = procedure
    seen = events(server, body)
    committed, canvas = list[int](), dict[int, int]()
    for name, data in seen[:-1]:
        if name == "token":
            assert all(data["token_ids"][position - 8 - len(committed)] == token for position, token in canvas.items())
            committed, canvas = committed + data["token_ids"], {}
        else:
            now = dict(zip(data["positions"], data["token_ids"], strict=True))
            assert (name, data["start"], data["length"]) == ("revision", 8 + len(committed), 32)
            assert canvas.items() <= now.items() and len(canvas) < len(now) < 32  # what is set stays set
            assert len(data["text"]) == 32 and data["text"].count(MASK) == 32 - len(now)
            canvas = now
    shown = sum(name == "revision" for name, _ in seen)
    assert 0 < shown < 128 - 4 and len(committed) == 128  # one in 50 ms, and none that waits when it is committed
    done = seen[-1][1]
    whole = server.post("/v1/generate", body).json()
    assert done["outputs"] == whole["outputs"] and done["procedure"] == whole["procedure"]
    assert whole["outputs"][0]["text"] == "".join(data["text"] for name, data in seen if name == "token")
    assert whole["usage"]["forwards"] == 128 and whole["usage"]["tokens_per_forward"] == 1.0


def test_previews_lead_to_the_picture(server: Server) -> None:
    body = {
        "model": "shapes",
        "prompt": "a large red circle above a small blue square on a white background",
        "seed": 4,
        "preview_every": 5,
        "procedure": {"name": "dpmpp_2m", "steps": 20, "guidance": 2.0},
    }
    seen = events(server, body)
    assert [name for name, _ in seen] == ["preview"] * 3 + ["done"]
    assert [data["step"] for _, data in seen[:-1]] == [5, 10, 15]
    times = [data["t"] for _, data in seen[:-1]]
    assert times == sorted(times, reverse=True)
    assert all(Image.open(io.BytesIO(base64.b64decode(data["image"]))).size == (32, 32) for _, data in seen[:-1])
    del body["preview_every"]
    assert seen[-1][1]["outputs"] == server.post("/v1/generate", body).json()["outputs"]
    assert seen[-1][1]["usage"]["nfe"] == 40


@pytest.mark.parametrize("procedure,nfe", [("flow_map", 4), ("consistency", 4), ("euler", 8), ("heun", 14), ("ddim", 8)])
def test_usage_tells_the_network_evaluations(server: Server, procedure: str, nfe: int) -> None:
    body = {"model": "shapes", "prompt": "a small green triangle", "procedure": {"name": procedure, "steps": 4}}
    assert server.post("/v1/generate", body).json()["usage"]["nfe"] == nfe


def test_token_ids_go_in_and_out(server: Server) -> None:
    answer = server.post("/v1/tokenize", {"model": "shakespeare", "prompt": "ROMEO: é🎭"}).json()
    tokens = answer["tokens"]
    assert answer.keys() == {"tokens", "count", "max_model_len"} and answer["count"] == len(tokens)
    assert server.post("/v1/detokenize", {"model": "shakespeare", "tokens": tokens}).json() == {"prompt": "ROMEO: é🎭"}
    by_text = {"model": "shakespeare", "prompt": "ROMEO: é🎭", "max_tokens": 9, "temperature": 0}
    by_ids = {"model": "shakespeare", "input_tokens": tokens, "max_tokens": 9, "temperature": 0}
    first, second = (server.post("/v1/generate", body).json()["outputs"][0] for body in (by_text, by_ids))
    assert first["token_ids"] == second["token_ids"] and len(first["token_ids"]) == 9


def test_a_seed_that_was_not_given_is_reported_and_repeats(server: Server) -> None:
    body = {"model": "shakespeare", "prompt": "O ", "max_tokens": 20}
    first = server.post("/v1/generate", body).json()["outputs"][0]
    again = server.post("/v1/generate", {**body, "seed": first["seed"]}).json()["outputs"][0]
    assert again["text"] == first["text"]


def test_block_diffusion_uses_at_most_half_as_many_forwards_as_tokens(server: Server) -> None:
    procedure = {"name": "block_diffusion", "block_length": 32, "threshold": 0.4}
    body = {"model": "shakespeare", "prompt": "ROMEO:\nI ", "max_tokens": 128, "ignore_eos": True, "procedure": procedure}
    usage = server.post("/v1/generate", body | {"n": 8, "seed": 3, "temperature": 0.8}).json()["usage"]
    assert usage["generated_tokens"] == 8 * 128
    assert usage["forwards"] <= 0.5 * usage["generated_tokens"]
    assert usage["tokens_per_forward"] >= 2.0
