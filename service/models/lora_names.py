"""Which layer of a network the name of a LoRA file's tensor means."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

PREFIXES = ("transformer.", "unet.", "diffusion_model.", "base_model.model.")
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_")
TEXT_ENCODER = re.compile(r"(?P<name>text_encoder(?:_\d)?)\.(?P<rest>.+)|lora_te(?P<number>\d?)_(?P<flat>.+)")
PROJECTIONS = re.compile(r"self_attn\.to_(q|k|v|out)$")
INNER = {"in_layers_2": "conv1", "emb_layers_1": "time_emb_proj", "out_layers_3": "conv2", "skip_connection": "conv_shortcut"}
OUTER = {
    "input_blocks_0_0": "conv_in", "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1", "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1", "label_emb_0_2": "add_embedding_linear_2",
}  # fmt: skip


class LayerNames:
    """The names of a network's layers, to be found by what files call them.

    Prefixes say of which component of a pipeline a layer is; kohya's files write `_` for every dot, and name the layers of a
    UNet as the network that Stable Diffusion was published with does (`input_blocks_4_1_...`).
    """

    def __init__(self, layers: Collection[str]) -> None:
        self._layers = frozenset(layers)
        self._flat = {name.replace(".", "_"): name for name in layers}
        firsts = {match[1] for name in layers if (match := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", name))}
        self._in_block = len(firsts) + 1

    def find(self, written: str) -> str | None:
        """The layer's name, or None where the network has none of that name."""
        for prefix in ("", *PREFIXES):
            name = written.removeprefix(prefix)
            if name in self._layers:
                return name
        flat = next((written.removeprefix(prefix) for prefix in FLAT_PREFIXES if written.startswith(prefix)), None)
        if flat is None:
            return None
        return self._flat.get(flat) or self._flat.get(self._published_unet(flat))

    def exact(self, name: str) -> str | None:
        """The layer of this name, which may have `_` for dots."""
        return name if name in self._layers else self._flat.get(name)

    def _published_unet(self, flat: str) -> str:
        """diffusers' name of a layer of the published UNet, both with `_` for dots; "" for what is none."""
        if flat in OUTER:
            return OUTER[flat]
        found = re.fullmatch(r"(input|output)_blocks_(\d+)_(\d)_(.+)", flat)
        middle = re.fullmatch(r"middle_block_([012])_(.+)", flat)
        if middle:
            part = "attentions_0" if middle[1] == "1" else f"resnets_{int(middle[1]) // 2}"
            return f"mid_block_{part}_{INNER.get(middle[2], middle[2])}"
        if not found or self._in_block < 2:
            return ""
        number, place, rest = int(found[2]), int(found[3]), found[4]
        down = found[1] == "input"
        block, layer = divmod(number - down, self._in_block)
        if rest == "op":
            return f"down_blocks_{block}_downsamplers_0_conv"
        if rest == "conv":
            return f"up_blocks_{block}_upsamplers_0_conv"
        part = "attentions" if place else "resnets"
        return f"{'down' if down else 'up'}_blocks_{block}_{part}_{layer}_{INNER.get(rest, rest)}"


class ComponentNames:
    """Layers of a pipeline's networks: of its denoiser, and of its text encoders by their names."""

    def __init__(self, denoiser: Collection[str], text_encoders: Mapping[str, Collection[str]]) -> None:
        self._denoiser = LayerNames(denoiser)
        self._text_encoders = {name: LayerNames(layers) for name, layers in text_encoders.items()}

    def find(self, written: str) -> tuple[str, str] | None:
        """The component ("" is the denoiser) and the layer's name in it; None where there is none of that name."""
        component = text_encoder_of(written)
        if component is None:
            layer = self._denoiser.find(written)
            return None if layer is None else ("", layer)
        found = TEXT_ENCODER.fullmatch(written)
        assert found is not None
        if component not in self._text_encoders:
            return None
        dot = "." if found["rest"] else "_"
        name = PROJECTIONS.sub(r"self_attn.\1_proj", found["rest"] or found["flat"])
        # Of the published classes of CLIP one has its transformer in `text_model`, and one is it, of late.
        for variant in (name, name.removeprefix(f"text_model{dot}"), f"text_model{dot}{name}"):
            layer = self._text_encoders[component].exact(variant)
            if layer is not None:
                return component, layer
        return None


def text_encoder_of(written: str) -> str | None:
    """The text encoder that a name is for, or None where it is for the denoiser. kohya counts from 1, diffusers from none."""
    found = TEXT_ENCODER.fullmatch(written)
    if found is None:
        return None
    return found["name"] or "text_encoder" + (f"_{found['number']}" if found["number"] not in ("", "1") else "")
