"""A model folder on disk (config.json, safetensors, tokenizer.json) becomes a network on a device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from service.models.decoder import Decoder
from service.models.errors import ModelError
from service.models.families import FAMILIES, Family, read_config
from service.models.filling import fill, fitting, materialise
from service.models.flow_transformer import FlowTransformer, FlowTransformerConfig
from service.models.generation_config import GenerationConfig, token_ids
from service.models.hub import fetch
from service.models.int8 import quantise
from service.models.memory import available_memory
from service.models.model_spec import EMBEDDED, ModelSpec, readable
from service.models.safetensors_files import SafetensorsFolder

__all__ = ["EMBEDDED", "ImageModel", "ModelError", "ModelSpec", "TextModel", "fast_dtype", "load_model"]

FLOW = "stride_flow_transformer"


@dataclass(frozen=True)
class TextModel:
    """`sampling_defaults` are generation_config.json's, by the names of a request's fields."""

    spec: ModelSpec
    network: Decoder
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    parameters: int
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageModel:
    spec: ModelSpec
    network: FlowTransformer
    parameters: int


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it faster than float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if fast else torch.float32


def load_model(spec: ModelSpec, device: torch.device, kv_memory: int = 0) -> TextModel | ImageModel:
    """Raises ModelError, which names the model, for a missing or broken file, an architecture or an option that is not
    supported, tensors that do not fit the architecture, and a model that, with `kv_memory` bytes beside it, does not fit
    into the device's memory.

    Without a dtype of its own, an image model computes in the device's fastest: its state is float32 either way. A text
    model does so if its checkpoint is in 16 bits; what `stride train` wrote, and a checkpoint in float32, is computed in
    float32, since rounding decides which token is drawn.
    """
    try:
        if spec.hub_id is not None:
            spec = replace(spec, folder=fetch(spec.hub_id, spec.revision))
        config = _read_json(spec, "config.json")
        _check_tokenizer(spec)
        kind = config.get("model_type")
        if kind == FLOW:
            return _load_image_model(spec, config, device)
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise ModelError(f"model_type {kind!r} is not supported; supported: {', '.join([*FAMILIES, FLOW])}")
        return _load_text_model(spec, config, device, kv_memory)
    except ModelError as error:
        raise ModelError(f"{spec.name}: {error}") from error


def _load_text_model(spec: ModelSpec, json: dict[str, Any], device: torch.device, kv_memory: int) -> TextModel:
    family = FAMILIES[json["model_type"]]
    text = json if family.inside is None else json.get(family.inside) or {}
    try:
        config = read_config(json, spec.max_model_len)
        eos = token_ids("eos_token_id", json.get("eos_token_id", text.get("eos_token_id"))) or ()
        with torch.device("meta"):
            network = Decoder(config)
    except (TypeError, ValueError) as error:
        raise ModelError(f"config.json: {error}") from error
    longest = config.max_position_embeddings
    if spec.max_model_len is not None and spec.max_model_len > longest:
        raise ModelError(f"max_model_len {spec.max_model_len} is more than the {longest} positions that the model knows")
    network.fuse()
    parameters = _count(network)
    if spec.quantization == "int8":
        quantise(network.model.layers)
    checkpoint = SafetensorsFolder(spec.folder)
    targets = fitting(network, checkpoint, family)
    exact = "stride" in json or any(checkpoint.tensors[name].dtype in ("F32", "F64") for name in targets)
    dtype = spec.dtype or (torch.float32 if exact else fast_dtype(device))
    _check_room(network, dtype, device, kv_memory)
    materialise(network, dtype, device)
    fill(spec.name, checkpoint, targets, family)
    generation = _generation_config(spec)
    eos = generation.eos_token_ids if generation.eos_token_ids is not None else eos
    drawable = tuple(token for token in eos if token < config.vocab_size)
    limit = spec.max_model_len or longest
    return TextModel(spec, network.eval(), drawable, limit, parameters, generation.sampling)


def _load_image_model(spec: ModelSpec, json: dict[str, Any], device: torch.device) -> ImageModel:
    without_effect = [key for key in ("max_model_len", "quantization", "kv_memory") if getattr(spec, key) is not None]
    if without_effect:
        raise ModelError(f"{without_effect[0]} is for text models, and this one makes pictures")
    try:
        network = FlowTransformer(FlowTransformerConfig.from_json(json))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"config.json: {error}") from error
    network = network.to(device=device, dtype=spec.dtype or fast_dtype(device)).requires_grad_(False)
    checkpoint = SafetensorsFolder(spec.folder)
    fill(spec.name, checkpoint, fitting(network, checkpoint, Family()), Family())
    return ImageModel(spec, network.eval(), _count(network))


def _check_room(network: Decoder, dtype: torch.dtype, device: torch.device, kv_memory: int) -> None:
    """Before anything is read: parameters at their size on the device, and the KV cache."""
    weights = sum(p.numel() * (1 if p.dtype == torch.int8 else dtype.itemsize) for p in network.parameters())
    room = available_memory(device)
    if weights + kv_memory > room:
        raise ModelError(
            f"needs {readable(weights + kv_memory)} of memory, {readable(weights)} for weights and {readable(kv_memory)} for the "
            f"KV cache, and {device} has {readable(room)}; dtype=bfloat16, quantization=int8 or a smaller kv_memory need less"
        )


def _check_tokenizer(spec: ModelSpec) -> None:
    if not (spec.folder / "tokenizer.json").is_file():
        other = next((name for name in ("tokenizer.model", "vocab.json", "spiece.model") if (spec.folder / name).is_file()), None)
        hint = f", only a {other}; AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one" if other else ""
        raise ModelError(f"{spec.folder} has no tokenizer.json{hint}")


def _generation_config(spec: ModelSpec) -> GenerationConfig:
    name = "generation_config.json"
    if not (spec.folder / name).is_file():
        return GenerationConfig()
    try:
        return GenerationConfig.from_json(_read_json(spec, name), spec.name)
    except ValueError as error:
        raise ModelError(f"{name}: {error}") from error


def _read_json(spec: ModelSpec, name: str) -> dict[str, Any]:
    try:
        content = json.loads((spec.folder / name).read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{spec.folder / name}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{spec.folder / name} must be a JSON object")
    return content


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
