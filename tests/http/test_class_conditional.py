"""Class-conditional models over a socket, as a user serves them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.dit_checkpoints import small_dit, write_dit
from tests.http.server import Server
from tests.models.test_class_conditional import write_pipeline


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    write_pipeline(folder / "dit")
    write_dit(folder / "meanflow", small_dit("meanflow", channels=3, guidance_input=True, labels={"7": "owl, barn owl"}))
    models = "--model", f"dit={folder / 'dit'},steps=6", "--model", f"meanflow={folder / 'meanflow'},dtype=float32"
    server = Server(tmp_path_factory.mktemp("server") / "log", *models, ready_seconds=110.0)
    yield server
    server.stop()


def picture(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json()["outputs"][0]["image"])))).astype(int)


def test_the_card_says_what_each_is(server: Server) -> None:
    cards = {card["id"]: card for card in httpx.get(server.url + "/v1/models").json()["data"]}
    assert cards["dit"]["signature"] == ["noise(x,t)"] and "flow_map" not in cards["dit"]["procedures"]
    assert set(cards["meanflow"]["signature"]) == {"velocity(x,t)", "flow_map(x,t,s)"}


def test_a_class_may_be_a_number_or_a_name(server: Server) -> None:
    by_name, by_number, other = (
        picture(server.post("/v1/generate", {"model": "dit", "prompt": prompt, "seed": 3})) for prompt in ("umbrella", "9", "8")
    )
    assert by_name.shape == (16, 16, 3) and np.array_equal(by_name, by_number) and not np.array_equal(by_name, other)


def test_a_request_that_says_nothing_gets_the_models_own_procedure(server: Server) -> None:
    dit = server.post("/v1/generate", {"model": "dit", "prompt": "0"}).json()
    assert {"name": "ddim", "steps": 6, "guidance": 4.0}.items() <= dit["procedure"].items() and dit["usage"]["nfe"] == 12
    meanflow = server.post("/v1/generate", {"model": "meanflow", "prompt": "barn owl"}).json()
    assert {"name": "flow_map", "steps": 2}.items() <= meanflow["procedure"].items() and meanflow["usage"]["nfe"] == 2


def test_the_scale_of_guidance_is_an_input_in_any_sampler(server: Server) -> None:
    one, three = (
        server.post(
            "/v1/generate", {"model": "meanflow", "prompt": "7", "procedure": {"name": "euler", "steps": 4, "guidance": w}}
        )
        for w in (1.0, 3.0)
    )
    assert three.json()["usage"]["nfe"] == 4 and not np.array_equal(picture(one), picture(three))


def test_steps_can_be_reused_and_usage_says_so(server: Server) -> None:
    procedure = {"name": "ddim", "steps": 6, "guidance": 2.0}
    body = {"model": "dit", "prompt": "3", "seed": 1}
    exact, reused = (
        server.post("/v1/generate", body | {"procedure": procedure | {"reuse_threshold": threshold}}) for threshold in (0.0, 10.0)
    )
    assert "reused" not in exact.json()["usage"] and reused.json()["usage"]["reused"] == 10
    assert reused.json()["usage"]["nfe"] == 12 and not np.array_equal(picture(exact), picture(reused))


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": "a red circle"}, "prompt", "a number from 0 to 999 or a name"),
        ({"prompt": "1000"}, "prompt", "from 0 to 999"),
        ({"prompt": "crane"}, "prompt", "classes 3 and 5"),
        ({"prompt": "1", "size": "32x32"}, "size", "16x16"),
        ({"prompt": "1", "procedure": {"name": "flow_map"}}, "procedure.name", "flow_map"),
        ({"prompt": "1", "procedure": {"name": "ddim", "reuse_threshold": -1}}, "procedure.reuse_threshold", ">= 0"),
        (
            {"model": "meanflow", "prompt": "1", "procedure": {"name": "flow_map", "guidance": 20}},
            "procedure.guidance",
            "1 to 10",
        ),
    ],
)
def test_what_the_model_cannot_do_is_a_400_that_names_it(server: Server, body: dict[str, object], param: str, words: str) -> None:
    answer = server.post("/v1/generate", {"model": "dit"} | body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and words in error["message"], answer.text
