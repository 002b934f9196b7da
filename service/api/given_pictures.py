"""Pictures that clients send: base64 or files into RGB bytes of the size that the model works in."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io

from PIL import Image, ImageOps, UnidentifiedImageError

from service.engine.messages import SizeRule
from service.engine.validation import InvalidField

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 1 << 26
LARGEST_MASK = 255


async def given_picture(
    rule: SizeRule, size: tuple[int, int] | None, image: str, mask: str | None, transparent: bool = False
) -> tuple[tuple[int, int], bytes, bytes]:
    """The size, RGB bytes and mask bytes (one a pixel, 255 where the picture is to change) of base64 `image` and `mask`.

    Without a `size` it is the picture's own, brought into what the model makes. With `transparent` a mask says by
    transparency where to change, as OpenAI's does; otherwise by whiteness. Raises InvalidField for what is no picture.
    """
    return await asyncio.to_thread(_given, rule, size, image, mask, transparent)


def _given(
    rule: SizeRule, size: tuple[int, int] | None, image: str, mask: str | None, transparent: bool
) -> tuple[tuple[int, int], bytes, bytes]:
    picture = _opened(image, "image")
    width, height = size or _fitting(rule, *picture.size)
    rgb = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).tobytes()
    if mask is None:
        return (width, height), rgb, b""
    drawn = _opened(mask, "mask")
    if transparent:
        if "A" not in drawn.getbands() and "transparency" not in drawn.info:
            raise InvalidField("mask", "mask has no transparent channel: what is transparent is to be changed")
        drawn = drawn.convert("RGBA").getchannel("A").point(lambda alpha: LARGEST_MASK - alpha)
    area = drawn.convert("L").resize((width, height), Image.Resampling.NEAREST)
    hard = area.point(lambda value: LARGEST_MASK if value >= 128 else 0)
    if hard.getbbox() is None:
        raise InvalidField("mask", "mask leaves nothing to change")
    return (width, height), rgb, hard.tobytes()


def _opened(text: str, param: str) -> Image.Image:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        raw = base64.b64decode(text, validate=True)
        file = Image.open(io.BytesIO(raw), formats=FORMATS)
        if file.width * file.height > MOST_PIXELS:
            raise InvalidField(param, f"{param} has {file.width}x{file.height} pixels; at most {MOST_PIXELS} are read")
        return ImageOps.exif_transpose(file)  # as the camera's owner sees it
    except Image.DecompressionBombError:  # raised before its size can be asked
        raise InvalidField(param, f"{param} has far too many pixels; at most {MOST_PIXELS} are read") from None
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InvalidField):
            raise
        raise InvalidField(param, f"{param} is no picture ({', '.join(FORMATS)}), in JSON as base64") from None


def _fitting(rule: SizeRule, width: int, height: int) -> tuple[int, int]:
    """The size that a model makes nearest to a picture's own; its default where that has no meaning."""
    if rule.listed:
        return (width, height) if rule.allows(width, height) else rule.default
    scale = min(1.0, (rule.area / (width * height)) ** 0.5, rule.largest / max(width, height))
    step = rule.multiple_of
    fitted = max(rule.smallest, int(width * scale) // step * step), max(rule.smallest, int(height * scale) // step * step)
    return fitted if rule.allows(*fitted) else rule.default
