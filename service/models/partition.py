"""Which part of a decoder each of several ranks holds (tensor parallelism, arXiv 1909.08053).

Matrices that read the stream are divided by their outputs, q, k and v by heads; those that write to it, by their inputs: each
rank's product is then one summand of the output. Embeddings and the head are divided by tokens. Every expert is divided as
one feed-forward layer is, so that the ranks have equal work whichever experts are chosen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from service.models.decoder_config import DecoderConfig, ExpertsConfig

Range = tuple[int, int]
"""Start and stop."""


@dataclass(frozen=True)
class Cut:
    """Part of a tensor: the `ranges` along a dimension, one behind the other."""

    dim: int
    ranges: tuple[Range, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """A view where it is one range, so that no more than that is read of a tensor in a mapped file."""
        parts = [tensor.narrow(self.dim, start, stop - start) for start, stop in self.ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.dim)


@dataclass(frozen=True)
class Partition:
    """Rank `rank` of `size`."""

    rank: int
    size: int

    def range(self, count: int) -> Range:
        """Of `count` things that can be parted anywhere."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def kv_range(self, kv_heads: int) -> Range:
        """Of heads of keys and values: where there are fewer than ranks, several ranks have the same one."""
        start = kv_heads * self.rank // self.size
        return start, max(kv_heads * (self.rank + 1) // self.size, start + 1)

    def config(self, whole: DecoderConfig) -> DecoderConfig:
        """Of this rank's decoder; the vocabulary stays that of the whole. Raises ValueError, which names the field, for one that
        cannot be divided among so many."""
        size = self.size
        if whole.self_conditioning:
            raise ValueError("a network that takes in the distributions of its last canvas (self_conditioning) is not divided")
        if whole.num_attention_heads % size:
            raise ValueError(f"num_attention_heads, {whole.num_attention_heads}, is not a multiple of {size}")
        for kv_heads in dict.fromkeys(heads for heads, _ in whole.widths()):
            if kv_heads % size and size % kv_heads:
                raise ValueError(f"num_key_value_heads, {kv_heads}, is neither a multiple nor a divisor of {size}")
        divided = {"intermediate_size": whole.intermediate_size, "vocab_size": whole.vocab_size}
        if whole.experts is not None:
            divided |= {"moe_intermediate_size": whole.experts.intermediate_size}
            divided |= {"size of shared experts": whole.experts.shared_size} if whole.experts.shared_size else {}
        for name, count in divided.items():
            if count < size:
                raise ValueError(f"{name}, {count}, is less than {size}")
        layers = tuple(
            layer if layer.kv_heads is None else replace(layer, kv_heads=_length(self.kv_range(layer.kv_heads)))
            for layer in whole.layers
        )
        return replace(
            whole,
            num_attention_heads=whole.num_attention_heads // size,
            num_key_value_heads=_length(self.kv_range(whole.num_key_value_heads)),
            intermediate_size=_length(self.range(whole.intermediate_size)),
            layers=layers,
            experts=None if whole.experts is None else self._experts(whole.experts),
        )

    def _experts(self, whole: ExpertsConfig) -> ExpertsConfig:
        return replace(
            whole,
            intermediate_size=_length(self.range(whole.intermediate_size)),
            shared_size=_length(self.range(whole.shared_size)),
        )

    def cut(self, name: str, shape: tuple[int, ...], whole: DecoderConfig) -> Cut | None:
        """Of a tensor by the decoder's name for it and its shape in the whole decoder; None: whoever holds it holds all of it."""
        if re.search(r"\.(o|down)_proj\.bias$", name):
            return None
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            return Cut(0, (self.range(shape[0]),))
        if re.search(r"\.down_proj(\.weight)?$", name):
            return Cut(len(shape) - 1, (self.range(shape[-1]),))
        # A bias has one dimension, a matrix two, and those of many experts in one tensor three.
        outputs = len(shape) - 1 if name.endswith(".bias") else len(shape) - 2
        if re.search(r"\.(gate|up)_proj(\.|$)", name):
            return Cut(outputs, (self.range(shape[outputs]),))
        if re.search(r"\.gate_up_proj(\.|$)", name):
            half = shape[outputs] // 2
            start, stop = self.range(half)
            return Cut(outputs, ((start, stop), (half + start, half + stop)))
        found = re.search(r"\.layers\.(\d+)\.self_attn\.(q|k|v|o|qkv)_(proj|norm)\.", name)
        if found is None or (found[3] == "norm" and whole.qk_norm != "full"):
            return None
        return self._heads(found[2], len(shape) - 1 if found[2] == "o" else 0, int(found[1]), whole)

    def _heads(self, part: str, dim: int, layer: int, whole: DecoderConfig) -> Cut:
        kv_heads, head_dim = whole.widths()[layer]
        queries, keys = self.range(whole.num_attention_heads), self.kv_range(kv_heads)
        heads = {"q": [queries], "o": [queries], "k": [keys], "v": [keys]}.get(part)
        if heads is None:
            behind, values = whole.num_attention_heads, not whole.layers[layer].keys_as_values
            heads = [queries, _moved(keys, behind), *([_moved(keys, behind + kv_heads)] if values else [])]
        return Cut(dim, tuple((start * head_dim, stop * head_dim) for start, stop in heads))


def _length(part: Range) -> int:
    return part[1] - part[0]


def _moved(part: Range, by: int) -> Range:
    return part[0] + by, part[1] + by
