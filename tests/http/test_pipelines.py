"""Models of pictures from folders, over a socket, as a user serves them: a pipeline, and class-conditional ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.adapters import random_adapter
from tests.dit_checkpoints import small_dit, write_dit
from tests.http.server import Server
from tests.models.test_class_conditional import write_pipeline
from tests.pipelines import FAMILIES, load

pytestmark = pytest.mark.timeout(300)  # a server that imports diffusers takes a minute to start on a busy machine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all of them: what it takes to start is most of what these tests take."""
    folder = FAMILIES["stable_diffusion_3"].write(tmp_path_factory.mktemp("sd3") / "model")
    layers = ["transformer_blocks.0.attn.to_q", "transformer_blocks.1.ff.net.2"]
    file = random_adapter(load(folder).transformer, layers).save(folder / "ink.safetensors")
    classes = tmp_path_factory.mktemp("classes")
    write_pipeline(classes / "dit")
    write_dit(classes / "meanflow", small_dit("meanflow", channels=3, guidance_input=True, labels={"7": "owl, barn owl"}))
    models = (
        f"sd3={folder},steps=4,lora=ink:{file}", "shapes", f"dit={classes / 'dit'},steps=6",
        f"meanflow={classes / 'meanflow'},dtype=float32",
    )  # fmt: skip
    flags = [word for model in models for word in ("--model", model)]
    server = Server(tmp_path_factory.mktemp("server") / "log", *flags, ready_seconds=240.0)
    yield server
    server.stop()


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).astype(int)


def test_the_card_says_what_it_makes(server: Server) -> None:
    cards = {card["id"]: card for card in httpx.get(server.url + "/v1/models").json()["data"]}
    assert cards["sd3"]["signature"] == ["velocity(x,t)"]
    assert "flow_map" not in cards["sd3"]["procedures"] and "euler" in cards["sd3"]["procedures"]


def test_pictures_of_any_size_come_by_openai_and_by_generate(server: Server) -> None:
    body = {"model": "sd3", "prompt": "a red circle", "seed": 5}
    answer = server.post("/v1/images/generations", body | {"size": "48x32", "negative_prompt": "blue"})
    assert answer.status_code == 200, answer.text
    assert pixels(answer.json()["data"][0]["b64_json"]).shape == (32, 48, 3)

    first, again, other = (
        server.post("/v1/generate", body | {"seed": seed, "procedure": {"name": "euler", "guidance": 2.0}}).json()
        for seed in (5, 5, 6)
    )
    assert first["usage"]["nfe"] == 8  # four steps, the option of --model, with guidance
    images = [pixels(one["outputs"][0]["image"]) for one in (first, again, other)]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def test_an_adapter_changes_the_picture_of_the_request_that_asks_for_it(server: Server) -> None:
    assert httpx.get(server.url + "/v1/models/sd3").json()["adapters"] == ["ink"]
    body = {"model": "sd3", "prompt": "a red circle", "seed": 5}
    plain, inked, half, again = (
        pixels(server.post("/v1/generate", body | lora).json()["outputs"][0]["image"])
        for lora in ({}, {"lora": [{"name": "ink"}]}, {"lora": [{"name": "ink", "scale": 0.5}]}, {})
    )
    assert np.array_equal(plain, again)
    assert not np.array_equal(plain, inked) and not np.array_equal(half, inked)


def test_a_request_that_says_nothing_gets_the_pipelines_own_procedure(server: Server) -> None:
    answer = server.post("/v1/generate", {"model": "sd3", "prompt": "a red circle"}).json()
    assert {"name": "euler", "steps": 4, "guidance": 7.0}.items() <= answer["procedure"].items() and answer["usage"]["nfe"] == 8
    assert pixels(answer["outputs"][0]["image"]).shape == (32, 32, 3)


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
def test_what_the_network_cannot_do_is_a_400(server: Server, body: dict[str, object], param: str) -> None:
    answer = server.post("/v1/generate", {"model": "sd3", "prompt": "a"} | body)
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith(param.split(".")[0]), answer.text


def test_it_has_no_tokens_to_tell(server: Server) -> None:
    for route, body in (("tokenize", {"prompt": "a"}), ("detokenize", {"tokens": [1]})):
        answer = server.post(f"/v1/{route}", {"model": "sd3"} | body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "model", answer.text


def picture(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return pixels(answer.json()["outputs"][0]["image"])


def test_the_card_says_what_each_class_conditional_model_is(server: Server) -> None:
    cards = {card["id"]: card for card in httpx.get(server.url + "/v1/models").json()["data"]}
    assert cards["dit"]["signature"] == ["noise(x,t)"] and "flow_map" not in cards["dit"]["procedures"]
    assert set(cards["meanflow"]["signature"]) == {"velocity(x,t)", "flow_map(x,t,s)"}


def test_a_class_may_be_a_number_or_a_name(server: Server) -> None:
    by_name, by_number, other = (
        picture(server.post("/v1/generate", {"model": "dit", "prompt": prompt, "seed": 3})) for prompt in ("umbrella", "9", "8")
    )
    assert by_name.shape == (16, 16, 3) and np.array_equal(by_name, by_number) and not np.array_equal(by_name, other)


def test_a_request_that_says_nothing_gets_a_class_conditional_models_own_procedure(server: Server) -> None:
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
def test_what_a_class_conditional_model_cannot_do_is_a_400_that_names_it(
    server: Server, body: dict[str, object], param: str, words: str
) -> None:
    answer = server.post("/v1/generate", {"model": "dit"} | body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and words in error["message"], answer.text
