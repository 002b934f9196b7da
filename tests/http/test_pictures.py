"""Pictures to start from, over a socket: base64 for /v1/generate, files for OpenAI's edits."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.http.server import Server

PROMPT = {"model": "shapes", "prompt": "a large red circle"}
DRAWN = "a large blue square"
EDITS = "/v1/images/edits"


def encoded(pixels: np.ndarray, mode: str | None = None, file_format: str = "png") -> str:
    return base64.b64encode(file(pixels, mode, file_format)).decode()


def file(pixels: np.ndarray, mode: str | None = None, file_format: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, file_format)
    return buffer.getvalue()


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int)


def generated(server: Server, **body: Any) -> np.ndarray:
    answer = server.post("/v1/generate", PROMPT | {"seed": 3} | body)
    assert answer.status_code == 200, answer.text
    return decoded(answer.json()["outputs"][0]["image"])


@pytest.fixture(scope="module")
def drawn(server: Server) -> np.ndarray:
    return generated(server, prompt=DRAWN, procedure={"name": "euler", "steps": 12}).astype(np.uint8)


def test_little_strength_gives_the_picture_back_and_much_another(server: Server, drawn: np.ndarray) -> None:
    """Little under the picture's own caption: a denoiser that knows its scenes well makes any other of it at any strength."""

    def far(prompt: str, strength: float) -> float:
        procedure = {"name": "euler", "steps": 20, "strength": strength}
        return float(np.abs(generated(server, prompt=prompt, image=encoded(drawn), procedure=procedure) - drawn).mean())

    assert far(DRAWN, 0.1) < 4 < far(PROMPT["prompt"], 0.9) / 3


@pytest.mark.parametrize("asked", [{}, {"procedure": {"name": "consistency"}}, {"quality": "draft"}], ids=str)
def test_a_given_picture_is_not_lost_where_nothing_is_said_of_how(server: Server, asked: dict[str, Any]) -> None:
    black, white = (np.full((32, 32, 3), level, np.uint8) for level in (0, 255))
    one, other = (generated(server, image=encoded(picture), **asked) for picture in (black, white))
    assert np.abs(one - other).max() > 20


def test_what_a_mask_leaves_out_stays(server: Server, drawn: np.ndarray) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    seen = generated(server, image=encoded(drawn), mask=encoded(mask), procedure={"name": "euler", "steps": 12})
    assert np.abs(seen[:, 16:] - drawn[:, 16:]).max() <= 1
    assert np.abs(seen[:, :16] - drawn[:, :16]).max() > 20


def test_openai_edits_take_files_and_transparency_says_where(server: Server, drawn: np.ndarray) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    alpha = np.full((32, 32, 4), 255, np.uint8)
    alpha[:16, :, 3] = 0
    answer = client.images.edit(
        model="shapes", prompt="a large red circle", image=("in.png", file(drawn)), mask=("mask.png", file(alpha)),
        n=2, size="32x32", background="auto", output_compression=100,
        extra_body={"seed": 7, "num_inference_steps": 8, "procedure": "euler"},
    )  # fmt: skip
    assert answer.data is not None and len(answer.data) == 2
    for one in answer.data:
        seen = decoded(one.b64_json or "")
        assert np.abs(seen[16:] - drawn[16:]).max() <= 1
        assert np.abs(seen[:16] - drawn[:16]).max() > 20


def test_edits_stream_partial_pictures(server: Server, drawn: np.ndarray) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    stream = client.images.edit(
        model="shapes", prompt="a large red circle", image=("in.png", file(drawn)), stream=True, partial_images=2,
        extra_body={"procedure": {"name": "euler", "steps": 10, "strength": 0.7, "guidance_interval": [0.0, 0.9]}},
    )  # fmt: skip
    kinds = [event.type for event in stream]
    assert kinds == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]


GREY = np.full((32, 32, 3), 128, np.uint8)


@pytest.mark.parametrize(
    "body,param",
    [
        ({"image": "no base64!"}, "image"),
        ({"image": base64.b64encode(b"no picture").decode()}, "image"),
        ({"image": encoded(GREY)[: len(encoded(GREY)) // 2 // 4 * 4]}, "image"),
        ({"image": 7}, "image"),
        ({"mask": encoded(GREY)}, "mask"),
        ({"image": encoded(GREY), "mask": encoded(np.zeros((32, 32), np.uint8))}, "mask"),
        ({"procedure": {"name": "euler", "strength": 0.5}}, "procedure.strength"),
        ({"image": encoded(GREY), "procedure": {"name": "euler", "strength": 1.0}}, "procedure.strength"),
        ({"image": encoded(GREY), "procedure": {"name": "euler", "strength": 0.0}}, "procedure.strength"),
        ({"image": encoded(GREY), "procedure": {"name": "euler", "strength": 2}}, "procedure.strength"),
        ({"lora": [{"name": "no such"}]}, "lora"),
        ({"lora": [{"scale": 1}]}, "lora.0.name"),
        ({"lora": "x"}, "lora"),
        ({"procedure": {"name": "euler", "guidance_interval": [0.9, 0.1]}}, "procedure.guidance_interval"),
        ({"procedure": {"name": "euler", "timesteps": [0.1, 0.5]}}, "procedure"),
        ({"procedure": {"name": "euler", "schedule": "sideways"}}, "procedure.schedule"),
        ({"size": "32x"}, "size"),
        ({"size": "99999999x1"}, "size"),
        ({"image": encoded(GREY), "strength": 0.5}, "strength"),
    ],
)
def test_bad_pictures_name_their_field(server: Server, body: dict[str, Any], param: str) -> None:
    answer = server.post("/v1/generate", PROMPT | body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize(
    "fields,files,param",
    [
        (PROMPT, {}, "image"),
        (PROMPT | {"n": "many"}, {"image": file(GREY)}, "n"),
        (PROMPT | {"surprise": "1"}, {"image": file(GREY)}, "surprise"),
        (PROMPT, {"image": b"no picture"}, "image"),
        (PROMPT | {"image": "text"}, {}, "image"),
        (PROMPT, {"image": file(GREY), "mask": file(GREY)}, "mask"),
        (PROMPT | {"strength": "1"}, {"image": file(GREY)}, "strength"),
        (PROMPT | {"background": "transparent"}, {"image": file(GREY)}, "background"),
        ({"model": "shapes"}, {"image": file(GREY)}, "prompt"),
    ],
)
def test_bad_forms_name_their_field(server: Server, fields: dict[str, str], files: dict[str, bytes], param: str) -> None:
    parts: list[tuple[str, Any]] = [(name, (None, value)) for name, value in fields.items()]
    parts += [(name, (f"{name}.png", content)) for name, content in files.items()]
    answer = httpx.post(server.url + EDITS, files=parts)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_a_quality_that_is_none_is_told_the_words_of_both(server: Server) -> None:
    answer = server.post("/v1/images/generations", PROMPT | {"quality": "ultra"})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400 and "'balanced'" in message and "'hd'" in message, message


def test_edits_take_no_json(server: Server) -> None:
    answer = server.post(EDITS, PROMPT)
    assert answer.status_code == 400 and "multipart" in answer.json()["error"]["message"]


def test_a_picture_of_another_size_is_brought_to_the_models(server: Server) -> None:
    seen = generated(server, image=encoded(np.full((90, 41, 3), 200, np.uint8), file_format="jpeg"), procedure="euler")
    assert seen.shape == (32, 32, 3)


def test_models_tell_sizes_noise_and_adapters(server: Server) -> None:
    entry = httpx.get(server.url + "/v1/models/shapes").json()
    assert entry["sizes"] == ["32x32"] and entry["guidance_input"] == "jumps" and entry["adapters"] == []


def test_a_photograph_is_turned_as_its_camera_says(server: Server) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(buffer, "png", exif=exif)
    image = base64.b64encode(buffer.getvalue()).decode()
    mask = np.zeros((32, 32), np.uint8)
    mask[0, 0] = 255
    seen = generated(server, image=image, mask=encoded(mask), procedure={"name": "euler", "steps": 2})
    assert seen[2:14].mean() < 5 and seen[18:30].mean() > 250
