"""Puts a checkpoint's tensors into a network's parameters, one at a time, so that no second copy ever exists."""

from __future__ import annotations

import logging
import math
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from service.models.decoder import Decoder, Experts, FeedForward, SelfAttention
from service.models.errors import ModelError
from service.models.family import Family
from service.models.normalisation import LayerNorm, RMSNorm
from service.models.partition import Cut
from service.models.safetensors_files import BITS, SafetensorsFolder
from service.models.weight_only import WeightOnlyLinear

log = logging.getLogger("stride.models")

BIG = 1 << 30
WIDE = ("expert_bias", "expert_scales", "layer_scalar", "canvas_scalar")
LOG_SECONDS = 10.0


@dataclass(frozen=True)
class Place:
    """Rows start..stop-1 of the parameter `attribute` of `module`."""

    module: nn.Module
    attribute: str
    start: int
    stop: int

    @property
    def parameter(self) -> tuple[nn.Module, str]:
        return self.module, self.attribute

    @property
    def whole(self) -> bool:
        return self.stop - self.start == getattr(self.module, self.attribute).shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *getattr(self.module, self.attribute).shape[1:])

    def fill(self, tensor: Tensor) -> None:
        """Quantises where the module is a WeightOnlyLinear; elsewhere converts to the parameter's dtype."""
        if isinstance(self.module, WeightOnlyLinear) and self.attribute == "weight":
            self.module.quantise(self.start, tensor)
        else:
            getattr(self.module, self.attribute)[self.start : self.stop].copy_(tensor)


@dataclass(frozen=True)
class Stack:
    """One tensor of the checkpoint that holds those of many experts, [experts, ...]."""

    parts: tuple[Place, ...]

    @property
    def module(self) -> nn.Module:
        return self.parts[0].module

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.parts), *self.parts[0].shape)

    def fill(self, tensor: Tensor) -> None:
        for part, own in zip(self.parts, tensor, strict=True):
            part.fill(own)


@dataclass(frozen=True)
class Share:
    """What one of several ranks holds of a checkpoint's tensor of a `shape`: a cut of it (None: all), at the `place`; None where
    it is for others."""

    place: Place | Stack | None
    shape: tuple[int, ...]
    cut: Cut | None

    @property
    def module(self) -> nn.Module | None:
        return None if self.place is None else self.place.module

    def fill(self, tensor: Tensor) -> None:
        """`tensor` is the part."""
        if self.place is not None:
            self.place.fill(tensor)

    def of(self, tensor: Tensor) -> Tensor:
        if self.place is None:
            return tensor[:0]
        return tensor if self.cut is None else self.cut.of(tensor)


Target = Place | Stack | Share


def places(network: nn.Module) -> dict[str, Place | Stack]:
    """By tensor name. The parts of a stacked matrix have the names that they have alone: q_proj is rows of qkv_proj; of fused
    experts all matrices of a kind have one name together, too."""
    found = own_places(network)
    stacks: dict[str, Place | Stack] = {}
    for name, module in network.named_modules():
        if isinstance(module, Experts):
            for matrix in ("gate_up_proj", "down_proj"):
                parts = [found.get(f"{name}.experts.{i}.{matrix}.weight") for i in range(len(module.experts))]
                whole = tuple(part for part in parts if part is not None)
                if whole:
                    stacks[f"{name}.experts.{matrix}"] = Stack(whole)
    return found | stacks


def own_places(network: nn.Module) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for name, module in network.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            if attribute != "scale" or not isinstance(module, WeightOnlyLinear):
                found[f"{name}.{attribute}" if name else attribute] = Place(module, attribute, 0, parameter.shape[0])
    for name, module in network.named_modules():
        if isinstance(module, SelfAttention) and module.qkv_proj is not None:
            split(found, name, "qkv_proj", ("q_proj", "k_proj", "v_proj"), [n * module.head_dim for n in module.sizes])
        elif isinstance(module, FeedForward) and module.gate_up_proj is not None:
            half = module.gate_up_proj.out_features // 2
            split(found, name, "gate_up_proj", ("gate_proj", "up_proj"), [half, half])
    return found


def split(found: dict[str, Place], name: str, whole: str, parts: tuple[str, ...], sizes: list[int]) -> None:
    """Adds the names of the rows of `name.whole` that are matrices of their own in a checkpoint, `name.part`."""
    for attribute in ("weight", "bias"):
        place = found.get(f"{name}.{whole}.{attribute}")
        start = 0
        for part, size in zip(parts, sizes, strict=True):
            if place is not None and size:
                found[f"{name}.{part}.{attribute}"] = Place(place.module, attribute, start, start + size)
            start += size


def materialise(network: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Real memory, not yet filled, for a network on the meta device; norms, scales and what chooses experts in float32, the
    rest as `dtype` or as it is."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            kept = parameter.dtype if isinstance(module, WeightOnlyLinear) and name != "bias" else dtype
            kept = torch.float32 if isinstance(module, RMSNorm | LayerNorm) or name in WIDE else kept
            empty = torch.empty(parameter.shape, dtype=kept, device=device)
            setattr(module, name, nn.Parameter(empty, requires_grad=False))


def fitting(
    network: nn.Module,
    checkpoint: SafetensorsFolder,
    family: Family,
    known: Mapping[str, Target] | None = None,
    optional: Collection[str] = (),
) -> dict[str, Target]:
    """Where each of the checkpoint's tensors goes, from the headers alone.

    known: the network's places by name, where they are not those of `places`. optional: names that a checkpoint may lack,
    because the network knows their numbers.

    Raises ModelError for a tensor that is missing, left over, of another shape, or of a dtype that is not read.
    """
    known, filled = places(network) if known is None else known, dict[str, Target]()
    tied = isinstance(network, Decoder) and network.config.tie_word_embeddings
    extra: list[str] = []
    for name, stored in checkpoint.tensors.items():
        own = family.own_name(name)
        if own is None or (tied and own == "lm_head.weight"):
            continue
        if own not in known:
            extra.append(name)
            continue
        place = known[own]
        expected = place.shape[::-1] if re.search(family.transposed, name) else place.shape
        if stored.shape != expected:
            raise ModelError(f"tensor {name} has shape {stored.shape}, expected {expected}")
        if stored.dtype not in BITS:
            raise ModelError(f"tensor {name} is stored as {stored.dtype}; supported: {', '.join(BITS)}")
        filled[name] = place
    single = {name: one for name, place in known.items() if isinstance(one := _own(place), Place) and name not in optional}
    missing = _missing(single, [part for place in filled.values() for part in _parts(place)])
    if missing:
        raise ModelError(f"tensor {missing} is missing from the checkpoint")
    if extra:
        raise ModelError(f"the checkpoint holds tensors that the architecture does not have: {', '.join(sorted(extra)[:5])}")
    return filled


def has_a_head_of_its_own(checkpoint: SafetensorsFolder, family: Family) -> bool:
    """Whether the matrix of the logits is stored, and is not that of the embeddings: what was trained apart is not tied, whatever
    the config says."""
    stored = {family.own_name(name): name for name in checkpoint.tensors}
    head, embeddings = stored.get("lm_head.weight"), stored.get("model.embed_tokens.weight")
    if head is None or embeddings is None:
        return False
    one, other = checkpoint.tensors[head], checkpoint.tensors[embeddings]
    if one.shape != other.shape:
        return False
    return one.dtype != other.dtype or not torch.equal(checkpoint.tensor(head), checkpoint.tensor(embeddings))


def _own(place: Target) -> Place | Stack | None:
    return place.place if isinstance(place, Share) else place


def _parts(place: Target) -> Iterable[Place]:
    own = _own(place)
    return own.parts if isinstance(own, Stack) else () if own is None else (own,)


def _missing(known: dict[str, Place], filled: Iterable[Place]) -> str | None:
    """The name of a place that is filled neither itself, nor as part of a whole, nor by its parts."""
    present = set(filled)
    whole = {place.parameter for place in present if place.whole}
    parted = {place.parameter for place in known.values() if not place.whole}
    for name, place in known.items():
        if place not in present and place.parameter not in whole and not (place.whole and place.parameter in parted):
            return name
    return None


def fill(name: str, checkpoint: SafetensorsFolder, targets: Mapping[str, Target], family: Family) -> None:
    """Read and convert everything. A bar on a terminal, a line in the log now and then elsewhere, when there is much.

    Raises ModelError for a tensor with numbers that are not finite: whoever asked such a network would get nothing.
    """
    advance = _progress(name, sum(checkpoint.tensors[tensor].nbytes for tensor in targets))
    with torch.no_grad():
        for tensor_name, tensor in checkpoint.read():
            place, tensor_bytes = targets.get(tensor_name), tensor.nbytes
            if place is None:
                continue
            if re.search(family.transposed, tensor_name):
                tensor = tensor.t()
            if isinstance(place, Share):
                tensor = place.of(tensor)
            # A pass at the speed of memory, where isfinite takes tens of times as long; nan is both least and most.
            if tensor.numel() and not all(math.isfinite(bound) for bound in tensor.aminmax()):
                raise ModelError(f"tensor {tensor_name} holds numbers that are not finite (nan or inf)")
            if family.zero_centred and isinstance(place.module, RMSNorm):
                tensor = tensor.float() + 1.0
            place.fill(tensor)
            advance(tensor_bytes)
    advance(0)


def _progress(name: str, total: int) -> Callable[[int], None]:
    """Told the bytes of every tensor that was read; 0 is the end."""
    if total < BIG:
        return lambda count: None
    if sys.stderr.isatty():
        bar = tqdm(total=total, desc=f"loading {name}", unit="B", unit_scale=True, unit_divisor=1024)

        def draw(count: int) -> None:
            if count:
                bar.update(count)
            else:
                bar.close()

        return draw
    done, logged = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, logged
        done += count
        if count == 0 or time.monotonic() - logged > LOG_SECONDS:
            logged = time.monotonic()
            log.info("loading %s: %d of %d KiB", name, done >> 10, total >> 10)

    return advance
