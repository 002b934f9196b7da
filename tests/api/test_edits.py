"""The form of /v1/images/edits: what clients may send that no JSON body has."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from fastapi.exceptions import RequestValidationError
from PIL import ExifTags, Image, ImageOps
from starlette.requests import Request

from service.api.edits import edit_body
from service.api.errors import ApiError
from service.api.given_pictures import given_picture
from service.api.schemas import ImageBody
from service.engine.validation import InvalidField
from service.procedures.sizes import SizeRule


def read(body: bytes, charset: str = "", leaves: bool = False) -> ImageBody:
    """The body of a form; its client `leaves` before the end of it."""
    messages = [{"type": "http.request", "body": body, "more_body": leaves}, {"type": "http.disconnect"}]
    content_type = f"multipart/form-data; boundary=B{charset and '; charset=' + charset}"

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    headers = [(b"content-type", content_type.encode())]
    return asyncio.run(edit_body(Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)))


def form(**fields: str) -> bytes:
    parts = {"model": "shapes", "prompt": "a fox"} | fields
    texts = (f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in parts.items())
    file = '--B\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\nbytes\r\n--B--\r\n'
    return ("".join(texts) + file).encode()


@pytest.mark.parametrize("prompt", ['{"scene": "a fox", "light": "low"}', "{}", "[1]", "7", "null"])
def test_a_prompt_is_text_even_where_it_is_json(prompt: str) -> None:
    assert read(form(prompt=prompt)).prompt == prompt


def test_what_is_nested_too_deep_to_be_read_is_no_procedure() -> None:
    deep = '{"name": ' + "[" * 200_000
    assert read(form(procedure=deep)).procedure == deep


@pytest.mark.parametrize("charset", ["undefined", "punycode", "x\0y"])
def test_a_charset_that_reads_no_form_is_the_clients_mistake(charset: str) -> None:
    with pytest.raises(ApiError, match="send it as UTF-8") as refused:
        read(form(), charset)
    assert refused.value.status == 400


def test_a_client_that_leaves_in_the_middle_of_its_form_is_no_defect() -> None:
    with pytest.raises(ApiError, match="went away") as gone:
        read(form()[:-20], leaves=True)
    assert gone.value.status == 499


@pytest.mark.parametrize("side", [9_000, 30_000])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_unpacked(side: int) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(InvalidField, match="pixels; at most"):
        asyncio.run(given_picture(SizeRule((64, 64)), None, base64.b64encode(bomb).decode(), None))


def nested(*fields: tuple[str, str]) -> ImageBody:
    parts = (f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in fields)
    return read("".join(parts).encode() + form())


def test_objects_and_lists_may_be_written_in_parts_as_the_openai_client_does() -> None:
    body = nested(
        ("procedure[name]", "euler"), ("procedure[timesteps][]", "1.0"), ("procedure[timesteps][]", "0.5"),
        ("search[method]", "best_of"), ("search[candidates]", "4"),
        ("lora[][name]", "7"), ("lora[][scale]", "0.5"), ("lora[][name]", "ink"),
    )  # fmt: skip
    assert body.procedure == {"name": "euler", "timesteps": [1.0, 0.5]}
    assert body.search == {"method": "best_of", "candidates": 4}
    assert body.adapters() == [("7", 0.5), ("ink", 1.0)]


@pytest.mark.parametrize(
    "fields",
    [
        (("procedure[steps]", "4"), ("procedure[steps]", "4")),
        (("procedure", "euler"), ("procedure[steps]", "4")),
        (("procedure[steps]", "4"), ("procedure", "euler")),
        (("seed", "4"), ("seed", "4")),
    ],
)
def test_what_is_given_twice_is_refused(fields: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(ApiError, match="given more than once"):
        nested(*fields)


@pytest.mark.parametrize("name", ["prompt[x]", "procedure[a][b][c][d][e]", "procedure[a", "[name]", "procedure" + "[a]" * 90])
def test_other_brackets_are_no_field(name: str) -> None:
    with pytest.raises(RequestValidationError):
        nested((name, "4"))


def test_a_name_that_is_no_text_is_the_clients_mistake() -> None:
    with pytest.raises(ApiError, match="no text") as refused:
        read(form(**{"\\ud800": "4"}), "raw_unicode_escape")
    assert refused.value.status == 400


def seen(picture: Image.Image, **options: Any) -> np.ndarray:
    """What the model is given of a picture, at its own size."""
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    text = base64.b64encode(file.getvalue()).decode()
    rule = SizeRule(picture.size, multiple_of=1, smallest=1)
    (width, height), rgb, _ = asyncio.run(given_picture(rule, picture.size, text, None))
    return np.frombuffer(rgb, np.uint8).reshape(height, width, 3)


def test_sixteen_bits_of_grey_are_brought_to_eight() -> None:
    levels = np.array([[300, 20_000], [40_000, 65_535]], np.uint16)
    assert np.abs(seen(Image.fromarray(levels))[..., 0].astype(int) - levels / 257).max() <= 1
    mask = io.BytesIO()
    Image.fromarray(np.array([[300, 32_000], [40_000, 65_535]], np.uint16)).save(mask, "PNG")
    picture = io.BytesIO()
    Image.new("RGB", (2, 2)).save(picture, "PNG")
    texts = [base64.b64encode(file.getvalue()).decode() for file in (picture, mask)]
    assert asyncio.run(given_picture(SizeRule((2, 2), multiple_of=1, smallest=1), (2, 2), *texts))[2] == bytes([0, 0, 255, 255])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_was_whatever_else_its_exif_says(orientation: int) -> None:
    picture = Image.fromarray(np.random.default_rng(orientation).integers(0, 256, (4, 4, 3), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    assert np.array_equal(seen(picture, exif=exif), expected)
    entries = [(274, 3, 1, struct.pack(">HH", orientation, 0)), (282, 2, 4, b"72\0\0"), (296, 2, 4, b"in\0\0")]
    odd = b"MM\0*" + struct.pack(">IH", 8, len(entries))
    odd += b"".join(struct.pack(">HHI", *entry[:3]) + entry[3] for entry in entries) + bytes(4)
    assert np.array_equal(seen(picture, exif=odd), expected)


@pytest.mark.parametrize("exif", [b"MM\0*", b"no exif", b"II*\0" + b"\xff" * 40])
def test_exif_that_cannot_be_read_turns_nothing(exif: bytes) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8))
    assert np.array_equal(seen(picture, exif=exif), np.asarray(picture))
