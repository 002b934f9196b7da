"""Heads on disk: which kind a folder or a checkpoint holds, told by its tensors, and their weights."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from service.models.decoder_config import DecoderConfig
from service.models.errors import ModelError
from service.models.families import FAMILIES, read_config
from service.models.family import Family
from service.models.filling import fill, fitting, materialise
from service.models.heads import FeatureModule, Heads, MedusaHeads, layer_config
from service.models.model_spec import ModelSpec
from service.models.safetensors_files import SafetensorsFolder

log = logging.getLogger("stride.models")

EMBEDDED_HEADS = "heads"
"""Folder inside a model's folder where its heads are looked for."""
_JOINING = r"^model\.layers\.(\d+)\.eh_proj\.weight$"
_MEDUSA = r"^(?:medusa_head\.)?(\d+)\."
_OWN_KEYS = {"num_nextn_predict_layers", "bias", "medusa_num_heads", "medusa_num_layers"}


@dataclass(frozen=True)
class StoredHeads:
    """Heads whose shape is known and whose weights are still on disk; `family` says how their tensors are called."""

    kind: str
    network: Heads
    checkpoint: SafetensorsFolder
    family: Family

    def load(self, name: str, dtype: torch.dtype, device: torch.device) -> Heads:
        """Raises ModelError for tensors that are missing, left over, or of another shape."""
        targets = fitting(self.network, self.checkpoint, self.family)
        materialise(self.network, dtype, device)
        fill(name, self.checkpoint, targets, self.family)
        return self.network.eval()


def heads_of(spec: ModelSpec, model: DecoderConfig, inside: StoredHeads | None, rank: int) -> StoredHeads | None:
    """Those that were named, else those of the checkpoint itself (`inside`), else those in a folder beside it; for a network
    that is divided, none, of which its first rank tells the log. Raises ModelError as `stored_heads` does."""
    beside = spec.folder / EMBEDDED_HEADS
    if spec.ranks > 1:
        if not rank and (inside is not None or (beside / "config.json").is_file()):
            log.warning("%s: its heads are not loaded: they are for models that tensor_parallel does not divide", spec.name)
        return None
    if spec.heads is not None:
        try:
            return stored_heads(spec.heads, model)
        except ModelError as error:
            raise ModelError(f"heads: {error}") from error
    return stored_heads(beside, model) if inside is None and (beside / "config.json").is_file() else inside


def module_of_checkpoint(checkpoint: SafetensorsFolder, config: DecoderConfig, family: Family) -> StoredHeads:
    """DeepSeek-V3's layout: the module is the layer behind the last one of the model itself. Of several, which guess one
    token each, the first guesses all of them."""
    return _multi_token(checkpoint, config.num_hidden_layers, layer_config(config), family)


def stored_heads(folder: Path, model: DecoderConfig) -> StoredHeads:
    """Of a folder with safetensors and, if its layer is not like the model's, a config.json. Raises ModelError for heads of
    no known kind, and for those of another model."""
    checkpoint = SafetensorsFolder(folder)
    tensors = checkpoint.tensors
    config = _own_config(folder, model)
    joining = [int(found[1]) for name in tensors if (found := re.search(_JOINING, name))]
    if joining:
        stored = _multi_token(checkpoint, min(joining), config, Family())
    elif "fc.weight" in tensors:
        stored = _eagle(checkpoint, config)
    elif any(re.search(_MEDUSA + r"\d+\.linear\.weight$", name) for name in tensors):
        stored = _medusa(checkpoint, model)
    else:
        raise ModelError(
            f"{folder} holds no heads: there is neither model.layers.N.eh_proj.weight (a multi-token module as DeepSeek-V3's), "
            "fc.weight (EAGLE) nor 0.0.linear.weight (Medusa)"
        )
    return stored


def _multi_token(checkpoint: SafetensorsFolder, layer: int, config: DecoderConfig, family: Family) -> StoredHeads:
    own = rf"^model\.layers\.{layer}\."
    names = (
        *family.names,
        (own + r"(enorm|hnorm|eh_proj)\.", r"\1."),
        (own + r"shared_head\.norm\.", "norm."),
        (own, "layer."),
    )
    ignored = rf"{family.ignored}|^(?!model\.layers\.{layer}\.)|{own}(embed_tokens|shared_head\.head)\."
    _same_size(checkpoint, f"model.layers.{layer}.eh_proj.weight", config.hidden_size, 2)
    with torch.device("meta"):
        network = FeatureModule(config, normed=True)
    return StoredHeads("mtp", network, checkpoint, replace(family, names=names, ignored=ignored))


def _eagle(checkpoint: SafetensorsFolder, config: DecoderConfig) -> StoredHeads:
    tensors = checkpoint.tensors
    later = next((name for name in tensors if name in ("d2t", "t2d") or name.startswith("midlayer.")), None)
    if later is not None:
        raise ModelError(f"heads with {later} are EAGLE-3's, which read states of inner layers; EAGLE (layers.0.*) is supported")
    _same_size(checkpoint, "fc.weight", config.hidden_size, 2)
    names = ((r"^fc\.", "eh_proj."), (r"^layers\.0\.", "layer."))
    ignored = r"rotary_emb\.inv_freq$|^(embed_tokens|lm_head)\."
    entering = "layers.0.input_layernorm.weight" in tensors
    with torch.device("meta"):
        network = FeatureModule(config, normed=False, entering=entering, bias="fc.bias" in tensors)
    return StoredHeads("eagle", network, checkpoint, Family(names=names, ignored=ignored))


def _medusa(checkpoint: SafetensorsFolder, model: DecoderConfig) -> StoredHeads:
    found = [re.search(_MEDUSA + r"(\d+)\.linear\.weight$", name) for name in checkpoint.tensors]
    places = [(int(one[1]), int(one[2])) for one in found if one]
    count, blocks = max(head for head, _ in places) + 1, max(block for _, block in places) + 1
    for name in checkpoint.tensors:
        if re.search(_MEDUSA + r"0\.linear\.weight$", name):
            _same_size(checkpoint, name, model.hidden_size, 1)
        elif re.search(_MEDUSA + rf"{blocks}\.weight$", name):
            _same_vocabulary(f"tensor {name}", checkpoint.tensors[name].shape[0], model)
    names = ((_MEDUSA + r"(\d+)\.linear\.", r"blocks.\1.\2."), (_MEDUSA + rf"{blocks}\.", r"heads.\1."))
    bias = any(name.endswith(".linear.bias") for name in checkpoint.tensors)
    with torch.device("meta"):
        network = MedusaHeads(model, count, blocks, bias)
    return StoredHeads("medusa", network, checkpoint, Family(names=names))


def _own_config(folder: Path, model: DecoderConfig) -> DecoderConfig:
    """Of the one layer that heads may have."""
    path = folder / "config.json"
    if not path.is_file():
        return layer_config(model)
    try:
        json_: Any = json.loads(path.read_text())
        if not isinstance(json_, dict):
            raise ValueError("must be a JSON object")
        if json_.get("model_type") not in FAMILIES:
            return layer_config(model)
        config = read_config({key: value for key, value in json_.items() if key not in _OWN_KEYS}, model.max_position_embeddings)
    except (OSError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error
    if config.hidden_size != model.hidden_size:
        raise ModelError(f"{path}: hidden_size {config.hidden_size} is not the model's, {model.hidden_size}")
    _same_vocabulary(str(path), config.vocab_size, model)
    return layer_config(config)


def _same_size(checkpoint: SafetensorsFolder, name: str, size: int, inputs: int) -> None:
    shape = checkpoint.tensors[name].shape
    if len(shape) == 2 and shape[0] != size:
        raise ModelError(f"tensor {name} has shape {shape}, and the model's hidden_size is {size}: the heads are another model's")
    if shape != (size, inputs * size):
        raise ModelError(f"tensor {name} has shape {shape}, expected {(size, inputs * size)}")


def _same_vocabulary(where: str, own: int, model: DecoderConfig) -> None:
    if own != model.vocab_size:
        raise ModelError(f"{where}: a vocabulary of {own}, and the model has {model.vocab_size}: the heads are another model's")
