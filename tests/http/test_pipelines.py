"""A pipeline over a socket, as a user serves one."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.adapters import random_adapter
from tests.http.server import Server
from tests.pipelines import FAMILIES, load

pytestmark = pytest.mark.timeout(300)  # a server that imports diffusers takes a minute to start on a busy machine


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = FAMILIES["stable_diffusion_3"].write(tmp_path_factory.mktemp("sd3") / "model")
    layers = ["transformer_blocks.0.attn.to_q", "transformer_blocks.1.ff.net.2"]
    file = random_adapter(load(folder).transformer, layers).save(folder / "ink.safetensors")
    model = f"sd3={folder},steps=4,lora=ink:{file}"
    server = Server(tmp_path_factory.mktemp("server") / "log", "--model", model, "--model", "shapes", ready_seconds=240.0)
    yield server
    server.stop()


def picture(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).astype(int)


def test_the_card_says_what_it_makes(sd3: Server) -> None:
    cards = {card["id"]: card for card in httpx.get(sd3.url + "/v1/models").json()["data"]}
    assert cards["sd3"]["signature"] == ["velocity(x,t)"]
    assert "flow_map" not in cards["sd3"]["procedures"] and "euler" in cards["sd3"]["procedures"]


def test_pictures_of_any_size_come_by_openai_and_by_generate(sd3: Server) -> None:
    body = {"model": "sd3", "prompt": "a red circle", "seed": 5}
    answer = sd3.post("/v1/images/generations", body | {"size": "48x32", "negative_prompt": "blue"})
    assert answer.status_code == 200, answer.text
    assert picture(answer.json()["data"][0]["b64_json"]).shape == (32, 48, 3)

    first, again, other = (
        sd3.post("/v1/generate", body | {"seed": seed, "procedure": {"name": "euler", "guidance": 2.0}}).json()
        for seed in (5, 5, 6)
    )
    assert first["usage"]["nfe"] == 8  # four steps, the option of --model, with guidance
    images = [picture(one["outputs"][0]["image"]) for one in (first, again, other)]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def test_an_adapter_changes_the_picture_of_the_request_that_asks_for_it(sd3: Server) -> None:
    assert httpx.get(sd3.url + "/v1/models/sd3").json()["adapters"] == ["ink"]
    body = {"model": "sd3", "prompt": "a red circle", "seed": 5}
    plain, inked, half, again = (
        picture(sd3.post("/v1/generate", body | lora).json()["outputs"][0]["image"])
        for lora in ({}, {"lora": [{"name": "ink"}]}, {"lora": [{"name": "ink", "scale": 0.5}]}, {})
    )
    assert np.array_equal(plain, again)
    assert not np.array_equal(plain, inked) and not np.array_equal(half, inked)


def test_a_request_that_says_nothing_gets_the_pipelines_own_procedure(sd3: Server) -> None:
    answer = sd3.post("/v1/generate", {"model": "sd3", "prompt": "a red circle"}).json()
    assert {"name": "euler", "steps": 4, "guidance": 7.0}.items() <= answer["procedure"].items() and answer["usage"]["nfe"] == 8
    assert picture(answer["outputs"][0]["image"]).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"size": "50x32"}, "size"),
        ({"size": "512x512"}, "size"),
        ({"procedure": {"name": "flow_map"}}, "procedure.name"),
        ({"prompt": "a" * 16385}, "prompt"),
        ({"negative_prompt": "a " * 9000}, "negative_prompt"),
        ({"lora": [{"name": "oil"}]}, "lora"),
    ],
)
def test_what_the_network_cannot_do_is_a_400(sd3: Server, body: dict[str, object], param: str) -> None:
    answer = sd3.post("/v1/generate", {"model": "sd3", "prompt": "a"} | body)
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith(param.split(".")[0]), answer.text


def test_it_has_no_tokens_to_tell(sd3: Server) -> None:
    for route, body in (("tokenize", {"prompt": "a"}), ("detokenize", {"tokens": [1]})):
        answer = sd3.post(f"/v1/{route}", {"model": "sd3"} | body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "model", answer.text
