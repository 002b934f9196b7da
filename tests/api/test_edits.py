"""The form of /v1/images/edits: what clients may send that no JSON body has."""

from __future__ import annotations

import asyncio
import base64
import struct
import zlib

import pytest
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
