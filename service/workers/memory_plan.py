"""How the memory of one device is divided, from what was measured when everything was loaded. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.models.errors import ModelError
from service.models.model_spec import readable


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes: all that there is, what is taken (weights, latents, caches of a given size, other processes), and the share of the
    whole that may be taken in the end."""

    name: str
    total: int
    taken: int
    fraction: float

    @property
    def room(self) -> int:
        return int(self.total * self.fraction) - self.taken


@dataclass(frozen=True, slots=True)
class TextDemand:
    """A text model that takes what it is given: its largest forward needs so many bytes for the time that it runs; a block of
    keys and values so many; so many blocks at least, and more than `most` nobody could use."""

    name: str
    forward: int
    block: int
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class PictureDemand:
    """A model of pictures: a forward needs `fixed` bytes, and so many more for each evaluation and pixel. It must have room for
    `least` evaluations times pixels, and could use `most`. `beside`: what runs beside forwards, as decoding a latent, needs."""

    name: str
    fixed: int
    a_pixel: float
    least: int
    most: int
    beside: int = 0

    def forward(self, pixels: int) -> int:
        return self.fixed + int(self.a_pixel * pixels)

    def pixels(self, memory: int) -> int:
        """Evaluations times pixels that so many bytes have room for."""
        left = memory - self.fixed
        return self.most if self.a_pixel <= 0.0 or left >= self.most * self.a_pixel else int(left / self.a_pixel)


@dataclass(frozen=True)
class MemoryPlan:
    """Blocks of each text model, and evaluations times pixels of a forward of each model of pictures."""

    blocks: dict[str, int] = field(default_factory=dict)
    pixels: dict[str, int] = field(default_factory=dict)


def planned(device: DeviceMemory, texts: Sequence[TextDemand], pictures: Sequence[PictureDemand]) -> MemoryPlan:
    """Forwards of all models take turns, so the largest is what counts. What is left when everybody has the least goes to larger
    forwards of pictures, half of it at most where there are texts, and the rest to their keys and values, in equal parts but for
    those who can use no more.

    Raises ModelError, which says what is needed and what is there, where not even the least fits.
    """
    beside = max((each.beside for each in pictures), default=0)
    working = max([*(each.forward for each in texts), *(each.forward(each.least) for each in pictures)], default=0)
    least = sum(each.least * each.block for each in texts)
    left = device.room - working - beside - least
    if left < 0:
        raise ModelError(_too_small(device, working, beside, least, -left))
    wanted = max((each.forward(each.most) for each in pictures), default=0) - working
    extra = max(0, min(wanted, left // 2 if texts else left))
    return MemoryPlan(
        _divided(texts, left - extra), {each.name: max(each.least, each.pixels(working + extra)) for each in pictures}
    )  # fmt: skip


def _divided(texts: Sequence[TextDemand], memory: int) -> dict[str, int]:
    """The least for everybody and, of so many bytes beside it, equal parts, whoever needs little first: what it leaves is for the
    others."""
    blocks: dict[str, int] = {}
    waiting = sorted(texts, key=lambda each: (each.most - each.least) * each.block)
    while waiting:
        each = waiting.pop(0)
        more = max(0, min(each.most - each.least, memory // (len(waiting) + 1) // each.block))
        blocks[each.name] = each.least + more
        memory -= more * each.block
    return blocks


def _too_small(device: DeviceMemory, working: int, beside: int, least: int, missing: int) -> str:
    parts = [f"{readable(working)} for the largest forward"]
    parts += [f"{readable(beside)} to encode and decode beside it"] if beside else []
    parts += [f"{readable(least)} for the shortest KV cache"] if least else []
    free = f"{readable(device.room)} is left" if device.room > 0 else "nothing is left"
    return (
        f"the models do not fit on {device.name}: they need {', '.join(parts)}, and of {readable(device.total)} {free} when "
        f"{readable(device.taken)} is taken by weights, latents and others, and memory_fraction is {device.fraction:g}: "
        f"{readable(missing)} is missing; dtype=bfloat16, quantization=int8, a smaller token_budget or max_running, or fewer "
        "models need less"
    )
