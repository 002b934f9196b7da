"""Texts, and pictures to start from, on their way into a latent network; what a text became is kept for those who ask again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from service.models.latent_network import Adapters, Condition, LatentNetwork
from service.workers.types import Encoded, EncodeMove, RowError

KEPT_BYTES = 256 << 20
BESIDE_NUMBERS = 2048
"""Bytes of a condition that are neither its numbers nor its text: a class is one number, and millions of texts can mean it."""


Kind = tuple[bool, Adapters]
"""Whether texts are what guidance leads away from, and the adapters that they are encoded with."""
Key = tuple[str, Kind]
"""A text, and how it is encoded."""


class Conditions:
    """Conditions of the texts that were asked for last, as many as fit into `kept` bytes. With `alone` no bit of one depends on
    those that are encoded beside it."""

    def __init__(self, network: LatentNetwork, device: torch.device, kept: int = KEPT_BYTES, alone: bool = False) -> None:
        self._network, self._device, self._kept, self._alone = network, device, kept, alone
        self._known: OrderedDict[Key, Condition] = OrderedDict()
        self._bytes = 0

    def encode(self, moves: Sequence[EncodeMove]) -> list[Encoded | RowError]:
        """Texts that are new are encoded, each once, and together if they may be. A text that the network cannot take fails its
        own move."""
        wanted = dict.fromkeys(key for move in moves for key in self._keys(move))
        found: dict[Key, Condition | RowError] = {key: self._known[key] for key in wanted if key in self._known}
        for kind in dict.fromkeys(kind for _, kind in wanted):
            new = [text for text, other in wanted if other == kind and (text, other) not in found]
            for texts in [[text] for text in new] if self._alone else [new]:
                found |= self._fresh(texts, kind)
        for key, condition in found.items():
            if isinstance(condition, Condition):
                self._keep(key, condition)
        return [self._encoded(move, [found[key] for key in self._keys(move)]) for move in moves]

    def _fresh(self, texts: list[str], kind: Kind) -> dict[Key, Condition | RowError]:
        if not texts:
            return {}
        negative, adapters = kind
        try:
            with self._network.adapting(adapters) if adapters else nullcontext():
                return {(text, kind): one for text, one in zip(texts, self._network.encode(texts, negative), strict=True)}
        except ValueError as error:
            if len(texts) == 1:
                return {(texts[0], kind): RowError(str(error), "negative_prompt" if negative else "prompt")}
            return {key: one for text in texts for key, one in self._fresh([text], kind).items()}

    def _encoded(self, move: EncodeMove, found: list[Condition | RowError]) -> Encoded | RowError:
        conditions = [condition for condition in found if isinstance(condition, Condition)]
        refused = next((condition for condition in found if isinstance(condition, RowError)), None)
        if refused is not None:
            return refused
        if not move.image:
            return Encoded(tuple(conditions))
        given = self._network.embed(self._bytes_as(move.image, move, 3))[0]
        mask = None
        if move.mask:
            drawn = (self._bytes_as(move.mask, move, 1) >= 128).permute(0, 3, 1, 2).float()
            mask = F.interpolate(drawn, size=given.shape[-2:], mode="nearest")[0]
        return Encoded(tuple(conditions), given, mask)

    def _bytes_as(self, raw: bytes, move: EncodeMove, channels: int) -> Tensor:
        pixels = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        return pixels.view(1, move.height, move.width, channels).to(self._device)

    def _keep(self, key: Key, condition: Condition) -> None:
        if key in self._known:
            self._known.move_to_end(key)
            return
        self._known[key] = condition
        self._bytes += _size(key, condition)
        while self._bytes > self._kept and len(self._known) > 1:
            self._bytes -= _size(*self._known.popitem(last=False))

    def _keys(self, move: EncodeMove) -> list[Key]:
        """The prompt, and the text that guidance leads away from if there is one."""
        adapters = tuple((name, scale) for name, scale in move.adapters if scale and name in self._network.text_adapters)
        return [(text, (i > 0, adapters)) for i, text in enumerate(move.texts)]


def _size(key: Key, condition: Condition) -> int:
    """Bytes that a kept condition takes; of a text up to four a character."""
    return condition.bytes + BESIDE_NUMBERS + 4 * len(key[0])
