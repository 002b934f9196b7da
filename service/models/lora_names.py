"""Which layer of a network the name of a LoRA file's tensor means."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from service.models.lora_published import transformer_layers, unet_layer

PREFIXES = ("transformer.", "unet.", "diffusion_model.", "base_model.model.")
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_")
TEXT_ENCODER = re.compile(r"(?P<name>text_encoder(?:_\d)?)\.(?P<rest>.+)|lora_te(?P<number>\d?)_(?P<flat>.+)")
PROJECTIONS = re.compile(r"self_attn\.to_(q|k|v|out)$")


class LayerNames:
    """The names of a network's layers, to be found by what files call them.

    Prefixes say of which component of a pipeline a layer is; kohya's files write `_` for every dot. Where names are those of
    the network as it was published, one layer may be several here, whose outputs stand behind one another in it.
    """

    def __init__(self, layers: Collection[str]) -> None:
        self._layers = frozenset(layers)
        self._flat = {name.replace(".", "_"): name for name in layers}
        self._resnets = len({found[1] for name in layers if (found := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", name))})

    def find(self, written: str) -> tuple[str, ...]:
        """The names of the layers, none where the network has none of that name."""
        for prefix in ("", *PREFIXES):
            name = written.removeprefix(prefix)
            if name in self._layers:
                return (name,)
        prefix = next((prefix for prefix in (*FLAT_PREFIXES, *PREFIXES) if written.startswith(prefix)), "")
        flat = written.removeprefix(prefix).replace(".", "_")
        for parts in ((flat,), *transformer_layers(flat), (unet_layer(flat, self._resnets),)):
            if parts and all(part in self._flat for part in parts):
                return tuple(self._flat[part] for part in parts)
        return ()

    def exact(self, name: str) -> tuple[str, ...]:
        """The layer of this name, which may have `_` for dots."""
        return (name,) if name in self._layers else (self._flat[name],) if name in self._flat else ()


class ComponentNames:
    """Layers of a pipeline's networks: of its denoiser, and of its text encoders by their names."""

    def __init__(self, denoiser: Collection[str], text_encoders: Mapping[str, Collection[str]]) -> None:
        self._denoiser = LayerNames(denoiser)
        self._text_encoders = {name: LayerNames(layers) for name, layers in text_encoders.items()}

    def find(self, written: str) -> tuple[tuple[str, str], ...]:
        """The component ("" is the denoiser) and the name in it of each layer that is meant; none where there is none."""
        component = text_encoder_of(written)
        if component is None:
            return tuple(("", layer) for layer in self._denoiser.find(written))
        found = TEXT_ENCODER.fullmatch(written)
        assert found is not None
        if component not in self._text_encoders:
            return ()
        dot = "." if found["rest"] else "_"
        name = PROJECTIONS.sub(r"self_attn.\1_proj", found["rest"] or found["flat"])
        # Of the published classes of CLIP one has its transformer in `text_model`, and one is it, of late.
        for variant in (name, name.removeprefix(f"text_model{dot}"), f"text_model{dot}{name}"):
            layers = self._text_encoders[component].exact(variant)
            if layers:
                return tuple((component, layer) for layer in layers)
        return ()


def text_encoder_of(written: str) -> str | None:
    """The text encoder that a name is for, or None where it is for the denoiser. kohya counts from 1, diffusers from none."""
    found = TEXT_ENCODER.fullmatch(written)
    if found is None:
        return None
    return found["name"] or "text_encoder" + (f"_{found['number']}" if found["number"] not in ("", "1") else "")
