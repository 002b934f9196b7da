"""Pictures that clients send: base64 or files into RGB bytes of the size that the model works in."""

from __future__ import annotations

import asyncio
import base64
import io
from concurrent.futures import ThreadPoolExecutor

from PIL import ExifTags, Image

from service.engine.messages import SizeRule
from service.engine.validation import InvalidField

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 1 << 26
LARGEST_MASK = 255
_READERS = ThreadPoolExecutor(2, "given-pictures")
"""Few, since the largest picture takes half a gigabyte while it is read; and others than those that encode what was made."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright whose EXIF has this orientation."""


async def given_picture(
    rule: SizeRule, size: tuple[int, int] | None, image: str, mask: str | None, transparent: bool = False
) -> tuple[tuple[int, int], bytes, bytes]:
    """The size, RGB bytes and mask bytes (one a pixel, 255 where the picture is to change) of base64 `image` and `mask`.

    Without a `size` it is the picture's own, brought into what the model makes. With `transparent` a mask says by
    transparency where to change, as OpenAI's does; otherwise by whiteness. Raises InvalidField for what is no picture.
    """
    return await asyncio.get_running_loop().run_in_executor(_READERS, _given, rule, size, image, mask, transparent)


def _given(
    rule: SizeRule, size: tuple[int, int] | None, image: str, mask: str | None, transparent: bool
) -> tuple[tuple[int, int], bytes, bytes]:
    size, rgb = _colours(_opened(image, "image"), rule, size)
    return size, rgb, b"" if mask is None else _area(_opened(mask, "mask"), size, transparent)


def _colours(picture: Image.Image, rule: SizeRule, size: tuple[int, int] | None) -> tuple[tuple[int, int], bytes]:
    size = size or _fitting(rule, *picture.size)
    return size, picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).tobytes()


def _area(drawn: Image.Image, size: tuple[int, int], transparent: bool) -> bytes:
    if transparent:
        if "A" not in drawn.getbands() and "transparency" not in drawn.info:
            raise InvalidField("mask", "mask has no transparent channel: what is transparent is to be changed")
        drawn = drawn if "A" in drawn.getbands() else drawn.convert("RGBA")
        drawn = drawn.getchannel("A").point(lambda alpha: LARGEST_MASK - alpha)
    area = drawn.convert("L").resize(size, Image.Resampling.NEAREST)
    hard = area.point(lambda value: LARGEST_MASK if value >= 128 else 0)
    if hard.getbbox() is None:
        raise InvalidField("mask", "mask leaves nothing to change")
    return hard.tobytes()


def _opened(text: str, param: str) -> Image.Image:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        raw = base64.b64decode(text, validate=True)
        file = Image.open(io.BytesIO(raw), formats=FORMATS)
        if file.width * file.height > MOST_PIXELS:
            raise InvalidField(param, f"{param} has {file.width}x{file.height} pixels; at most {MOST_PIXELS} are read")
        file.load()
    except Image.DecompressionBombError:  # raised before its size can be asked
        raise InvalidField(param, f"{param} has far too many pixels; at most {MOST_PIXELS} are read") from None
    except InvalidField:
        raise
    except Exception:  # whatever a broken file leads its reader to
        raise InvalidField(param, f"{param} is no picture ({', '.join(FORMATS)}), in JSON as base64") from None
    turn = _TURNS.get(_orientation(file))
    picture = file if turn is None else file.transpose(turn)
    return picture.point(lambda level: level / 256).convert("L") if picture.mode.startswith("I") else picture


def _orientation(file: Image.Image) -> int:
    """How the camera was held, by the file's EXIF; 1, upright, where that cannot be read: it is beside the picture."""
    try:
        return int(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _fitting(rule: SizeRule, width: int, height: int) -> tuple[int, int]:
    """The size that a model makes nearest to a picture's own; its default where that has no meaning."""
    if rule.listed:
        return (width, height) if rule.allows(width, height) else rule.default
    scale = min(1.0, (rule.area / (width * height)) ** 0.5, rule.largest / max(width, height))
    step = rule.multiple_of
    fitted = max(rule.smallest, int(width * scale) // step * step), max(rule.smallest, int(height * scale) // step * step)
    return fitted if rule.allows(*fitted) else rule.default
