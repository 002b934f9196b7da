"""A model that makes pictures patch by patch, served from a folder."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.http.server import Server
from tests.http.test_generate import events
from tests.token_networks import write_patchwise


def picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


PICTURE = picture()


@pytest.fixture(scope="module")
def patchwise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = write_patchwise(tmp_path_factory.mktemp("patchwise") / "model")
    server = Server(folder.parent / "log", "--model", f"patches={folder},dtype=float32", "--model", "shapes")
    yield server
    server.stop()


def body(**options: Any) -> dict[str, Any]:
    return {"model": "patches", "prompt": "anything", "seed": 7, **options}


def test_a_picture_comes_of_its_default_and_of_any_sampler(patchwise: Server) -> None:
    plain = patchwise.post("/v1/generate", body()).json()
    assert plain["procedure"]["name"] == "masked_autoregressive" and plain["procedure"]["iterations"] == 4
    assert plain["usage"]["nfe"] == 4 * (1 + 3)
    procedure = {"name": "masked_autoregressive", "iterations": 2, "sampler": "unipc", "steps": 5, "guidance": 2.0}
    other = patchwise.post("/v1/generate", body(procedure=procedure, negative_prompt="something", n=2)).json()
    assert other["usage"]["nfe"] == 2 * (2 * 2 * (1 + 5))
    images = [plain["outputs"][0]["image"], *(output["image"] for output in other["outputs"])]
    arrays = [np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))) for image in images]
    assert {array.shape for array in arrays} == {(8, 8, 3)} and len({array.tobytes() for array in arrays}) == 3
    again = patchwise.post("/v1/images/generations", body()).json()
    assert again["data"][0]["b64_json"] == plain["outputs"][0]["image"]


def test_previews_come_between_sets_and_within(patchwise: Server) -> None:
    seen = events(patchwise, body(preview_every=2))
    steps = [data["step"] for name, data in seen if name == "preview"]
    assert steps == [2, 4, 6, 8, 10] and seen[-1][0] == "done" and len(seen) == 6


def test_the_catalogue_says_what_goes_with_what(patchwise: Server) -> None:
    models = {model["id"]: model for model in httpx.get(patchwise.url + "/v1/models").json()["data"]}
    assert models["patches"]["procedures"] == ["masked_autoregressive"]
    assert models["patches"]["signature"] == ["velocity(x,t|known)"]
    assert "masked_autoregressive" not in models["shapes"]["procedures"]
    listed = {entry["name"]: entry for entry in httpx.get(patchwise.url + "/v1/procedures").json()["data"]}
    assert listed["masked_autoregressive"]["axes"] == ["expand", "refine"]


def test_both_axes_are_counted(patchwise: Server) -> None:
    def moves() -> list[float]:
        return [patchwise.metric("stride_moves_total", model="patches", axis=axis) for axis in ("expand", "refine")]

    expand, refine = moves()
    patchwise.post("/v1/generate", body())
    patchwise.until(lambda: moves() == [expand + 4, refine + 12])


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"procedure": "euler"}, "procedure.name", "velocity(x,t|known)"),
        ({"model": "shapes", "prompt": "a red circle", "procedure": "masked_autoregressive"}, "procedure.name", "flow_map"),
        ({"procedure": {"iterations": 0}}, "procedure.iterations", ">= 1"),
        ({"procedure": {"sampler": "flow_map"}}, "procedure.sampler", "dpmpp_2m"),
        ({"image": PICTURE}, "image", "from nothing"),
        ({"search": {"method": "best_of", "scorer": "sharpness"}}, "search", "token by token"),
        ({"negative_prompt": "x"}, "negative_prompt", "guidance 1"),
        ({"size": "16x16"}, "size", "8x8"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(patchwise: Server, options: dict[str, Any], param: str, words: str) -> None:
    response = patchwise.post("/v1/generate", body(**options))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert words in error["message"], error
