"""LoRA adapters that every row of a forward chooses for itself (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.models.errors import ModelError
from service.models.lora_file import LowRankUpdate, adapter_files, read_adapter
from service.models.lora_names import ComponentNames, text_encoder_of
from service.models.row_subset import present

Chosen = tuple[tuple[str, float], ...]
"""Adapters of one row with their scales; mostly none."""
Place = tuple[str, str]
"""A layer: the text encoder that it is in, "" for the denoiser, and its name there."""


@dataclass(frozen=True)
class LayerUpdate:
    """One adapter's update of one layer, of the layer's dtype, on its device: W + up·down, the strength being part of up.

    Linear: down [r, in], up [out, r]. Convolution: down [r, in, kernel, kernel], up [out, r, 1, 1].
    """

    down: Tensor
    up: Tensor

    def __call__(self, layer: nn.Module, x: Tensor, scales: Tensor) -> Tensor:
        """scale·up·down·x; `scales` has one number for each of x's leading entries."""
        scales = scales.view(-1, *[1] * (x.ndim - 1))
        if isinstance(layer, nn.Conv2d):
            low = F.conv2d(x, self.down, None, layer.stride, layer.padding, layer.dilation)
            return F.conv2d(low * scales, self.up)
        return F.linear(F.linear(x, self.down) * scales, self.up)


class LoraAdapters:
    """A network's adapters, and those of the text encoders before it. The networks themselves stay as they are: what adapters
    add is added to what layers return, for the time of one call and for the rows that ask for it, and other rows get what the
    layers return, bit for bit.

    Layers may be linear ones and 2-d convolutions that are not grouped. Not for several threads that run one network at once.
    """

    def __init__(
        self, network: nn.Module, files: Mapping[str, Path] | None = None, text_encoders: Mapping[str, nn.Module] | None = None
    ) -> None:
        """`files` by the adapters' names, `text_encoders` by theirs in the pipeline. Raises ModelError for adapters that do
        not fit."""
        layers = {"": _layers(network)} | {name: _layers(encoder) for name, encoder in (text_encoders or {}).items()}
        self._layers = {(component, name): layer for component, own in layers.items() for name, layer in own.items()}
        self._names = ComponentNames(layers.pop(""), layers)
        self._updates: dict[str, dict[Place, LayerUpdate]] = {}
        for name, file in adapter_files(files or {}).items():
            try:
                self._updates[name] = self._read(file)
            except ModelError as error:
                raise ModelError(f"lora {name}: {error}") from error

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._updates)

    @property
    def text_names(self) -> tuple[str, ...]:
        """Those that change what texts become."""
        return tuple(name for name, updates in self._updates.items() if any(component for component, _ in updates))

    @property
    def bytes(self) -> int:
        """What the adapters hold on the device."""
        updates = (update for layers in self._updates.values() for update in layers.values())
        return sum(update.down.nbytes + update.up.nbytes for update in updates)

    @contextmanager
    def applied(self, rows: Sequence[Chosen], lengths: Mapping[str, Sequence[int]] | None = None) -> Iterator[None]:
        """While it lasts, forwards of the network are of these rows.

        A layer must get the rows in order along its input's leading dimension, each as many entries as the others: [R, ...]
        or [R·n, ...]. `lengths` says, by the name of a module, how many entries each row has in the layers of modules that get
        rows of unlike lengths behind one another. What is run for some of the rows is run within `row_subset.only`. A forward
        whose layers get anything else raises ValueError, and so does an adapter that is not there.
        """
        with self._added(rows, lambda place: place[0] == "", lengths or {}):
            yield

    @contextmanager
    def applied_to_texts(self, chosen: Chosen) -> Iterator[None]:
        """While it lasts, all texts are encoded with these adapters. Raises ValueError for one that is not there."""
        with self._added([chosen], lambda place: place[0] != "", {}):
            yield

    @contextmanager
    def _added(
        self, rows: Sequence[Chosen], here: Callable[[Place], bool], lengths: Mapping[str, Sequence[int]]
    ) -> Iterator[None]:
        names = {name for row in rows for name, scale in row if scale}
        unknown = sorted(names - set(self._updates))
        if unknown:
            raise ValueError(f"there is no LoRA adapter {unknown[0]!r}; there are: {', '.join(self._updates) or 'none'}")
        shares = _Shares(rows, [name for name in self._updates if name in names])
        with ExitStack() as stack:
            for place in {place for name in names for place in self._updates[name] if here(place)}:
                hook = self._hook(place, shares, _lengths_of(place[1], lengths))
                handle = self._layers[place].register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def _hook(self, place: Place, shares: _Shares, lengths: tuple[int, ...] | None) -> Callable[..., Tensor]:
        updates = {adapter: layers[place] for adapter, layers in self._updates.items() if place in layers}

        def add_updates(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
            x: Tensor = args[0] if args else kwargs["input"]
            try:
                chosen = shares.among(len(x), lengths, x)
            except ValueError as error:
                raise ValueError(f"LoRA layer {place[1]}: {error}") from None
            for adapter, entries, scales in chosen:
                if adapter not in updates:
                    continue
                if entries is None:
                    output.add_(updates[adapter](layer, x, scales))
                else:
                    output.index_add_(0, entries, updates[adapter](layer, x.index_select(0, entries), scales))
            return output

        return add_updates

    def _read(self, file: Path) -> dict[Place, LayerUpdate]:
        written = read_adapter(file)
        found = {name: self._names.find(name) for name in written}
        unknown = [name for name, places in found.items() if not places]
        if unknown:
            tensor = written[unknown[0]].tensor
            others = f" (and {len(unknown) - 1} more layers)" if len(unknown) > 1 else ""
            network = text_encoder_of(unknown[0]) or "network"
            raise ModelError(f"{file}: tensor {tensor}{others}: the {network} has no layer of that name")
        updates: dict[Place, LayerUpdate] = {}
        for name, places in found.items():
            for place, update in zip(places, self._divided(file, places, written[name]), strict=True):
                if place in updates:
                    raise ModelError(f"{file}: tensor {update.tensor}: layer {place[1]} is updated twice")
                updates[place] = _fitted(file, place[1], self._layers[place], update)
        return updates

    def _divided(self, file: Path, places: Sequence[Place], update: LowRankUpdate) -> list[LowRankUpdate]:
        """The update of each of the layers whose outputs stand behind one another in the one that the file knows."""
        if len(places) == 1:
            return [update]
        sizes = [len(cast(Tensor, self._layers[place].weight)) for place in places]
        if sum(sizes) != len(update.up):
            names = ", ".join(name for _, name in places)
            raise ModelError(f"{file}: tensor {update.tensor}: {len(update.up)} outputs are not those of {names}: {sizes}")
        return [replace(update, up=up) for up in update.up.split(sizes)]


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}


class _Shares:
    """Which entries along a leading dimension belong to which adapter, for the rows of one call."""

    def __init__(self, rows: Sequence[Chosen], names: Sequence[str]) -> None:
        self._rows = len(rows)
        self._scales: dict[str, dict[int, float]] = {name: defaultdict(float) for name in names}
        for index, row in enumerate(rows):
            for name, scale in row:
                if scale:
                    self._scales[name][index] += scale
        self._known: dict[tuple[object, ...], list[tuple[str, Tensor | None, Tensor]]] = {}

    def among(self, size: int, lengths: tuple[int, ...] | None, x: Tensor) -> list[tuple[str, Tensor | None, Tensor]]:
        """Adapters with the entries of their rows (None: all of them) and their scales, of x's dtype. Raises ValueError."""
        rows = present()
        key = (rows, size, lengths, x.dtype)
        if key not in self._known:
            self._known[key] = self._among(range(self._rows) if rows is None else rows, size, lengths, x)
        return self._known[key]

    def _among(
        self, rows: Sequence[int], size: int, lengths: tuple[int, ...] | None, x: Tensor
    ) -> list[tuple[str, Tensor | None, Tensor]]:
        if lengths is None:
            each = [size // len(rows)] * len(rows)
            if not size or size % len(rows):
                raise ValueError(f"its input has {size} entries, which are not {len(rows)} rows of one length")
        else:
            each = [lengths[row] for row in rows] if len(lengths) == self._rows else []
            if sum(each) != size:
                raise ValueError(f"its input has {size} entries, which are not {len(rows)} rows of the lengths {lengths}")
        starts = [sum(each[:place]) for place in range(len(rows))]
        chosen = []
        for name, scales in self._scales.items():
            places = [place for place, row in enumerate(rows) if row in scales]
            entries = [starts[place] + i for place in places for i in range(each[place])]
            values = torch.tensor([scales[rows[place]] for place in places for _ in range(each[place])], dtype=x.dtype)
            if entries:
                index = None if len(entries) == size else torch.tensor(entries, device=x.device)
                chosen.append((name, index, values.to(x.device)))
        return chosen


def _lengths_of(layer: str, lengths: Mapping[str, Sequence[int]]) -> tuple[int, ...] | None:
    within = [module for module in lengths if layer == module or layer.startswith(f"{module}.")]
    return tuple(lengths[max(within, key=len)]) if within else None


def _fitted(file: Path, name: str, layer: nn.Module, update: LowRankUpdate) -> LayerUpdate:
    """An update as the layer computes it. Raises ModelError for one of another shape."""
    down, up = update.down, update.up
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1 or layer.padding_mode != "zeros":
            raise ModelError(f"{file}: tensor {update.tensor}: {name} is a convolution in groups, which is not supported")
        down = down if down.ndim == 4 else down[:, :, None, None]
        up = up if up.ndim == 4 else up[:, :, None, None]
    else:
        down = down.flatten(2).squeeze(2) if down.ndim == 4 and down.shape[2:].numel() == 1 else down
        up = up.flatten(1)
    if down.shape[1:] != weight.shape[1:] or up.shape[0] != weight.shape[0]:
        raise ModelError(
            f"{file}: tensor {update.tensor}: an update of {list(update.up.shape)} times {list(update.down.shape)} does not fit "
            f"the layer {name}, whose weight is {list(weight.shape)}"
        )
    up = up.float() * update.strength
    return LayerUpdate(*(half.to(device=weight.device, dtype=weight.dtype).contiguous() for half in (down, up)))
