"""Which layers of a model have a window, and how each of them knows positions, read from its config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from service.models.config_keys import ConfigKeys
from service.models.decoder_config import LayerConfig
from service.models.rope import Rope, rope_from_json

SLIDING, FULL = "sliding_attention", "full_attention"
LayerTypes = Callable[[ConfigKeys, int], list[str]]
"""From the keys of a config.json and the number of layers to SLIDING or FULL for each."""


def always(keys: ConfigKeys, layers: int) -> list[str]:
    """A window on every layer, where there is one at all."""
    return [SLIDING] * layers


def never(keys: ConfigKeys, layers: int) -> list[str]:
    return [FULL] * layers


def qwen(keys: ConfigKeys, layers: int) -> list[str]:
    first, used, listed = keys.take("max_window_layers") or 0, keys.flag("use_sliding_window"), keys.listed("layer_types", layers)
    return (listed if used else None) or [SLIDING if used and layer >= first else FULL for layer in range(layers)]


def qwen_moe(keys: ConfigKeys, layers: int) -> list[str]:
    keys.take("max_window_layers")
    return [SLIDING if keys.flag("use_sliding_window") else FULL] * layers


def smollm3(keys: ConfigKeys, layers: int) -> list[str]:
    keys.take("max_window_layers")
    used, listed = keys.flag("use_sliding_window"), keys.listed("layer_types", layers)
    return (listed if used else None) or [SLIDING if used and not has else FULL for has in _rope_layers(keys, layers)]


def every_nth(key: str) -> LayerTypes:
    """A window on all layers but every n-th, n under `key`."""

    def layer_types(keys: ConfigKeys, layers: int) -> list[str]:
        every, listed = keys.integer(key), keys.listed("layer_types", layers)
        return listed or [SLIDING if (layer + 1) % every else FULL for layer in range(layers)]

    return layer_types


def _rope_layers(keys: ConfigKeys, layers: int) -> list[bool]:
    """Which layers know positions: `no_rope_layers` is, in spite of its name, 1 for those that do."""
    listed = keys.listed("no_rope_layers", layers)
    every = keys.integer("no_rope_layer_interval", layers + 1)
    return [bool(x) for x in listed] if listed is not None else [(i + 1) % every != 0 for i in range(layers)]


def read_layers(
    keys: ConfigKeys, layer_types: LayerTypes, count: int, head_dim: int, rotary: bool, context: int | None
) -> tuple[list[LayerConfig], int]:
    """Windows and position embeddings of the layers, and the longest context."""
    positions = keys.integer("max_position_embeddings", 2048)
    types = layer_types(keys, count)
    wrong = sorted(set(types) - {SLIDING, FULL})
    if wrong:
        raise ValueError(f"layer_types {wrong[0]!r} is not supported")
    window = None
    if layer_types is not never and keys.take("sliding_window") is not None:
        window = keys.integer("sliding_window")
    windows = [window if kind == SLIDING else None for kind in types]
    if not rotary:
        return [LayerConfig(window, None) for window in windows], positions
    shared = keys.flag("attention_k_eq_v")
    sizes = _own_sizes(keys, types, head_dim, shared)
    kinds = [(kind, size or head_dim) for kind, (size, _) in zip(types, sizes, strict=True)]
    ropes = {(kind, size): _rope(keys, kind == SLIDING, size, positions, context) for kind, size in sorted(set(kinds))}
    layers = []
    for window, kind, turns, (size, kv_heads) in zip(windows, kinds, _rope_layers(keys, count), sizes, strict=True):
        rope = ropes[kind][0] if turns else None
        rope = replace(rope, dim=size) if rope is not None and rope.dim is None and size is not None else rope
        same = shared and kind[0] == FULL
        layers.append(LayerConfig(window, rope, head_dim=size, kv_heads=kv_heads, keys_as_values=same))
    return layers, min(limit for _, limit in ropes.values())


def _own_sizes(keys: ConfigKeys, types: list[str], head_dim: int, shared: bool) -> list[tuple[int | None, int | None]]:
    """Size of a head and number of heads of keys and values by layer, where they differ from the model's: transformers 5 lists
    them by layer, others give those of layers without a window."""
    listed, wide, few = keys.mapping("per_layer_config"), keys.take("global_head_dim"), keys.take("num_global_key_value_heads")
    full = {} if listed else {"head_dim": wide, "num_key_value_heads": few if shared else None}
    own = [full if kind == FULL else {} for kind in types]
    for layer, values in listed.items():
        if not str(layer).isdecimal() or int(layer) >= len(types) or not isinstance(values, Mapping):
            raise ValueError(f"per_layer_config {layer!r} must be the number of a layer, and its value an object")
        unknown = sorted(values.keys() - {"head_dim", "num_key_value_heads"})
        if unknown:
            raise ValueError(f"per_layer_config: {unknown[0]} = {values[unknown[0]]!r} of layer {layer} is not supported")
        own[int(layer)] = dict(values)
    sizes = []
    for values in own:
        size, heads = values.get("head_dim"), values.get("num_key_value_heads")
        if not all(value is None or (isinstance(value, int) and value > 0) for value in (size, heads)):
            raise ValueError(f"head_dim and num_key_value_heads of a layer must be positive integers, not {size!r} and {heads!r}")
        sizes.append((None if size == head_dim else size, heads))
    return sizes


def _rope(keys: ConfigKeys, sliding: bool, head_dim: int, positions: int, context: int | None) -> tuple[Rope, int]:
    """transformers 5 writes `rope_parameters`, one a kind of layer where they differ; 4 `rope_scaling` beside `rope_theta`."""
    new, old = keys.mapping("rope_parameters"), keys.mapping("rope_scaling")
    parameters, theta = dict(new or old), keys.number("rope_theta", 10_000.0)
    local, partial = keys.take("rope_local_base_freq"), keys.take("partial_rotary_factor")
    original = keys.take("original_max_position_embeddings")
    if sliding and local is not None:
        theta = float(local)
    if parameters.keys() & {SLIDING, FULL}:
        parameters = dict(parameters.get(SLIDING if sliding else FULL) or {})
    elif sliding and local is not None:
        parameters = {}
    if partial is not None:
        parameters.setdefault("partial_rotary_factor", partial)
    if original is not None and parameters.get("rope_type", parameters.get("type", "default")) != "default":
        parameters["original_max_position_embeddings"] = original
    return rope_from_json(parameters, theta, head_dim, positions, context)
