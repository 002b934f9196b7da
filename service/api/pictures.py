"""RGB bytes into files, off the event loop."""

from __future__ import annotations

import asyncio
import base64
import io

from PIL import Image

from service.engine.messages import Done, Preview


def _encode(width: int, height: int, rgb: bytes, file_format: str) -> str:
    buffer = io.BytesIO()
    options = {"quality": 95} if file_format == "jpeg" else {"lossless": True} if file_format == "webp" else {}
    Image.frombytes("RGB", (width, height), rgb).save(buffer, file_format, **options)
    return base64.b64encode(buffer.getvalue()).decode()


async def encoded(picture: Done | Preview, file_format: str = "png") -> str:
    """The picture as base64 of a png, jpeg or lossless webp file."""
    return await asyncio.to_thread(_encode, picture.width, picture.height, picture.rgb, file_format)
