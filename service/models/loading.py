"""A model folder on disk (config.json, model.safetensors, tokenizer.json) becomes a network on a device."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from service.models.decoder import Decoder, DecoderConfig
from service.models.flow_transformer import FlowTransformer, FlowTransformerConfig

EMBEDDED = Path(__file__).parent / "embedded"
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


class ModelError(Exception):
    """A model that cannot be served, and why."""


@dataclass(frozen=True)
class ModelSpec:
    """What `--model` says: a name, where it lies, and options."""

    name: str
    folder: Path
    max_model_len: int | None = None
    dtype: torch.dtype | None = None

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """`shapes`, or `NAME=FOLDER`, each with `,key=value` behind it as often as needed. Raises ModelError."""
        place, *options = text.split(",")
        name, separator, path = place.partition("=")
        folder = Path(path) if separator else EMBEDDED / name
        if not (folder / "config.json").is_file():
            if separator:
                raise ModelError(f"--model {name}: {folder} is not a folder with a config.json")
            known = ", ".join(sorted(p.parent.name for p in EMBEDDED.glob("*/config.json")))
            raise ModelError(f"no embedded model is called {name!r}; there are: {known}. For others: NAME=FOLDER")
        limit, dtype = None, None
        for option in options:
            key, _, value = option.partition("=")
            match key:
                case "max_model_len":
                    if not value.isdecimal() or int(value) < 1:
                        raise ModelError(f"--model {name}: max_model_len must be a positive integer, not {value!r}")
                    limit = int(value)
                case "dtype":
                    if value not in DTYPES:
                        raise ModelError(f"--model {name}: dtype must be one of {', '.join(DTYPES)}, not {value!r}")
                    dtype = DTYPES[value]
                case _:
                    raise ModelError(f"--model {name}: option {key!r} is not supported; supported: max_model_len, dtype")
        return cls(name, folder, limit, dtype)


@dataclass(frozen=True)
class TextModel:
    spec: ModelSpec
    network: Decoder
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    parameters: int


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


def load_model(spec: ModelSpec, device: torch.device) -> TextModel | ImageModel:
    """Raises ModelError for a missing or broken file, an unknown architecture, or tensors that do not fit.

    Without a dtype of its own, a text model computes in float32, since rounding decides which token is drawn, and an
    image model in the device's fastest: its state is float32 either way.
    """
    config = _read_json(spec, "config.json")
    if not (spec.folder / "tokenizer.json").is_file():
        raise ModelError(f"{spec.name}: {spec.folder} has no tokenizer.json")
    match config.get("model_type"):
        case "qwen3":
            decoder = _network(spec, lambda: Decoder(DecoderConfig.from_json(config)), device, spec.dtype or torch.float32)
            known = decoder.config.max_position_embeddings
            limit = min(spec.max_model_len or known, known)
            return TextModel(spec, decoder, _eos(spec, decoder.config), limit, _count(decoder))
        case "stride_flow_transformer":
            dtype = spec.dtype or fast_dtype(device)
            flow = _network(spec, lambda: FlowTransformer(FlowTransformerConfig.from_json(config)), device, dtype)
            return ImageModel(spec, flow, _count(flow))
        case other:
            raise ModelError(f"{spec.name}: model_type {other!r} is not supported; supported: qwen3, stride_flow_transformer")


def _network(spec: ModelSpec, build: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    try:
        with torch.device("meta"):
            network = build()
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{spec.name}: config.json: {error}") from error
    path = spec.folder / "model.safetensors"
    try:
        tensors = load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{spec.name}: {path}: {error}") from error
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise ModelError(f"{spec.name}: tensor {name} is missing from {path}")
        if tensors[name].shape != tensor.shape:
            raise ModelError(f"{spec.name}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}")
    extra = sorted(tensors.keys() - expected.keys() - {"lm_head.weight"})
    if extra:
        raise ModelError(f"{spec.name}: {path} holds tensors that the architecture does not have: {', '.join(extra[:5])}")
    real = build()
    real.load_state_dict({name: tensors[name].to(dtype) for name in expected})
    return real.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _eos(spec: ModelSpec, config: DecoderConfig) -> tuple[int, ...]:
    """generation_config.json has the last word: chat models list several stop tokens there."""
    path = spec.folder / "generation_config.json"
    declared = _read_json(spec, path.name).get("eos_token_id") if path.is_file() else None
    eos = declared if declared is not None else config.eos_token_id
    return () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)


def _read_json(spec: ModelSpec, name: str) -> dict[str, Any]:
    try:
        content = json.loads((spec.folder / name).read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{spec.name}: {spec.folder / name}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{spec.name}: {name} must be a JSON object")
    return content


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
