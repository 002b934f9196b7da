"""The best of several pictures, over HTTP."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from service.models.scene_checker import check_scene
from service.models.scenes import parse_caption
from tests.http.server import Server
from tests.http.test_generate import events

CAPTION = "a large red circle above a small blue square left of a small green triangle on a white background"
JUMPS = {"name": "flow_map", "steps": 2}
BEST = {"method": "best_of", "candidates": 6, "scorer": "scene"}
STEERED = {"method": "particles", "particles": 4, "scorer": "scene"}


def body(**options: Any) -> dict[str, Any]:
    return {"model": "shapes", "prompt": CAPTION, "seed": 20, "procedure": JUMPS, **options}


def pixels(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def shown(encoded: str) -> float:
    return check_scene(torch.from_numpy(pixels(encoded) / 127.5 - 1.0).permute(2, 0, 1), parse_caption(CAPTION)).shown


def test_the_best_of_several_come_with_their_scores_and_seeds(server: Server) -> None:
    answer = server.post("/v1/generate", body(search=BEST, n=2)).json()
    each = server.post("/v1/generate", body(n=6)).json()["outputs"]
    scores = sorted((shown(output["image"]) for output in each), reverse=True)
    assert [output["score"] for output in answer["outputs"]] == pytest.approx(scores[:2])
    by_seed = {output["seed"]: output["image"] for output in each}
    for output in answer["outputs"]:
        apart = np.abs(pixels(output["image"]).astype(int) - pixels(by_seed[output["seed"]]))
        assert apart.max() <= 1  # rounding depends on the batch
    assert answer["usage"]["nfe"] == 12 and answer["usage"]["scored"] == 6
    assert "score" not in each[0]


def test_steering_spends_all_that_it_says(server: Server) -> None:
    answer = server.post("/v1/generate", body(search=STEERED, procedure={"name": "consistency", "steps": 4})).json()
    (output,) = answer["outputs"]
    assert output["score"] == pytest.approx(shown(output["image"])) and output["seed"] == 20
    assert answer["usage"]["nfe"] == 16 and answer["usage"]["scored"] == 4 * 4


def test_images_route_takes_a_search_too(server: Server) -> None:
    answer = server.post("/v1/images/generations", body(search=BEST, n=2)).json()
    same = server.post("/v1/generate", body(search=BEST, n=2)).json()
    assert [one["seed"] for one in answer["data"]] == [one["seed"] for one in same["outputs"]]
    assert all(one["score"] == pytest.approx(shown(one["b64_json"])) for one in answer["data"])
    assert answer["usage"]["scored"] == 6


def test_a_streamed_search_ends_with_the_same(server: Server) -> None:
    seen = events(server, body(search=BEST, n=2))
    assert [name for name, _ in seen] == ["done"]
    whole = server.post("/v1/generate", body(search=BEST, n=2)).json()
    assert [output["seed"] for output in seen[0][1]["outputs"]] == [output["seed"] for output in whole["outputs"]]


def test_models_list_their_scorers_and_metrics_count_scores(server: Server) -> None:
    scorers = {model["id"]: model["scorers"] for model in httpx.get(server.url + "/v1/models").json()["data"]}
    assert scorers == {"shapes": ["scene", "sharpness"], "shakespeare": []}
    before, images = server.metric("stride_moves_total", axis="score"), server.metric("stride_images_total")
    server.post("/v1/generate", body(search=BEST, n=2))
    server.until(lambda: server.metric("stride_moves_total", axis="score") == before + 6)
    assert server.metric("stride_images_total") == images + 2


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"search": {}}, "search.method", "best_of, particles"),
        ({"search": {"method": "beam", "scorer": "scene"}}, "search.method", "best_of, particles"),
        ({"search": {"method": "best_of"}}, "search.scorer", "shapes has: scene, sharpness"),
        ({"search": {**BEST, "scorer": "aesthetic"}}, "search.scorer", "it has: scene, sharpness"),
        ({"search": {**BEST, "candidates": 1}}, "search.candidates", ">= 2"),
        ({"search": {**BEST, "candidates": 17}}, "search.candidates", "16"),
        ({"search": {**BEST, "particles": 4}}, "search.particles", "unknown field"),
        ({"search": {**STEERED, "temperature": 0}}, "search.temperature", ">= 0.001"),
        ({"search": {**STEERED, "potential": "min"}}, "search.potential", "difference, max, sum"),
        ({"search": STEERED}, "search.method", "consistency"),
        ({"search": {**STEERED, "every": 9}, "procedure": {"name": "consistency", "steps": 8}}, "search.method", "more steps"),
        ({"search": BEST, "n": 7}, "search.candidates", "best 7"),
        ({"search": BEST, "stream": True, "preview_every": 1}, "preview_every", "none is chosen"),
        ({"search": BEST, "prompt": "a red red circle"}, "prompt", "a shape"),
        ({"search": "best_of"}, "search", "dictionary"),
        ({"search": BEST, "model": "shakespeare", "procedure": None}, "search", "image models"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_by_name(server: Server, options: dict[str, Any], param: str, words: str) -> None:
    response = server.post("/v1/generate", body(**options))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert words in error["message"], error


def test_partial_images_of_a_search_are_refused(server: Server) -> None:
    options = {"search": BEST, "stream": True, "partial_images": 1}
    response = server.post("/v1/images/generations", body(**options))
    assert response.status_code == 400 and response.json()["error"]["param"] == "partial_images"
