"""A family of decoders: how its config.json and its tensor names become the decoder's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.models.config_keys import ConfigKeys
from service.models.layer_types import LayerTypes, never

POST_NORMS = (
    (r"post_attention_layernorm", "attention_output_norm"),
    (r"pre_feedforward_layernorm", "post_attention_layernorm"),
    (r"post_feedforward_layernorm", "mlp_output_norm"),
)
"""Names of norms where there are some behind the branches, too."""


@dataclass(frozen=True)
class Family:
    """`constants`: fields of DecoderConfig that are the same for all of its models; `more`: fields from keys of its own.

    `defaults`: keys that its config.json may leave out; `renamed`: its words for some of Llama's keys. `layer_types`:
    which layers have a window, where config.json does not list them. `names`: (pattern, replacement), applied one after
    another to a tensor's name, which then is the decoder's own. `ignored`: tensors that take no part in the computation;
    `transposed`: those stored [in, out] (patterns too). `zero_centred`: norms that multiply by 1 + weight. `inside`: the
    key of config.json that holds the text network's part. `ignored_keys` have no effect on the network.
    """

    constants: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    layer_types: LayerTypes = never
    more: Callable[[ConfigKeys], dict[str, Any]] = lambda keys: {}
    names: tuple[tuple[str, str], ...] = ()
    ignored: str = r"rotary_emb\.inv_freq$"
    zero_centred: bool = False
    transposed: str = r"^$"
    inside: str | None = None
    ignored_keys: tuple[str, ...] = ()

    def own_name(self, tensor: str) -> str | None:
        """The decoder's name of a checkpoint's tensor; None for one that takes no part in the computation."""
        if re.search(self.ignored, tensor):
            return None
        for pattern, replacement in self.names:
            tensor = re.sub(pattern, replacement, tensor)
        return tensor
