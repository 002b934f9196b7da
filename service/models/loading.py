"""A model folder on disk (config.json, safetensors, tokenizer.json) becomes a network on a device."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from service.models.class_conditional import ClassConditional
from service.models.class_conditional_folder import PIPELINE as DIT_PIPELINE
from service.models.class_conditional_folder import load_class_conditional, load_dit_pipeline
from service.models.decoder import Decoder
from service.models.dit import MODEL_TYPE as DIT
from service.models.errors import ModelError
from service.models.families import FAMILIES, read_config
from service.models.family import Family
from service.models.filling import fill, fitting, has_a_head_of_its_own, materialise
from service.models.flow_transformer import FlowTransformer, FlowTransformerConfig
from service.models.gemma4 import PUBLISHED
from service.models.generation_config import GenerationConfig, token_ids
from service.models.heads import Heads
from service.models.heads_loading import heads_of, module_of_checkpoint
from service.models.hub import fetch
from service.models.latent_network import LatentNetwork
from service.models.masked_autoregressive import MaskedAutoregressive, MaskedAutoregressiveConfig, PatchwiseNetwork
from service.models.memory import available_memory
from service.models.model_spec import EMBEDDED, ModelSpec, readable
from service.models.parallel_decoder import ParallelDecoder, divided, shares
from service.models.partition import Partition
from service.models.pipelines.folder import load_pipeline
from service.models.pipelines.index import INDEX, read_object
from service.models.safetensors_files import SafetensorsFolder
from service.models.weight_only import quantise

__all__ = ["EMBEDDED", "ImageModel", "ModelError", "ModelSpec", "TextModel", "fast_dtype", "load_model"]

FLOW = "stride_flow_transformer"
PATCHWISE = "stride_masked_autoregressive"
log = logging.getLogger("stride.models")

DTYPES = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16}
TEXT_OPTIONS = ("max_model_len", "quantization", "kv_memory", "tensor_parallel", "draft_model", "heads")
PICTURE_OPTIONS = ("lora", "steps", "guidance")


@dataclass(frozen=True)
class TextModel:
    """`sampling_defaults` are generation_config.json's, by the names of a request's fields. `heads` and `draft_model` guess
    this model's tokens. `canvas_defaults` say how its canvases are refined, by the names of `block_diffusion`'s parameters."""

    spec: ModelSpec
    network: Decoder
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    parameters: int
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    canvas_defaults: Mapping[str, Any] = field(default_factory=dict)
    heads: Heads | None = None
    draft_model: TextModel | None = None


@dataclass(frozen=True)
class ImageModel:
    spec: ModelSpec
    network: FlowTransformer | LatentNetwork
    parameters: int
    dtype: torch.dtype


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it faster than float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if fast else torch.float32


def load_model(spec: ModelSpec, device: torch.device, kv_memory: int = 0, rank: int = 0) -> TextModel | ImageModel:
    """Raises ModelError, which names the model, for a missing or broken file, an architecture or an option that is not
    supported, tensors that do not fit the architecture, and a model that, with `kv_memory` bytes beside it, does not fit
    into the device's memory. Where `tensor_parallel` divides it, what `rank` holds: a draft model is the first one's alone.

    Without a dtype of its own, an image model computes in the device's fastest: its state is float32 either way. A text
    model does so if its checkpoint is in 16 bits; what `stride train` wrote, and a checkpoint in float32, is computed in
    float32, since rounding decides which token is drawn.
    """
    try:
        if spec.hub_id is not None:
            spec = replace(spec, folder=fetch(spec.hub_id, spec.revision))
        if (spec.folder / INDEX).is_file():
            return _load_pipeline(spec, device)
        config = _read_json(spec, "config.json")
        kind = config.get("model_type")
        if kind == DIT:
            return _load_class_conditional(spec, config, device)
        if kind == PATCHWISE:
            return _load_image_model(spec, config, device)
        _check_tokenizer(spec)
        if kind == FLOW:
            return _load_image_model(spec, config, device)
        if not isinstance(kind, str) or kind not in FAMILIES:
            known = ", ".join([*FAMILIES, FLOW, DIT, PATCHWISE])
            raise ModelError(f"model_type {kind!r} is not supported; supported: {known}")
        _refuse(spec, PICTURE_OPTIONS, "is for pipelines that make pictures, and this is a text model")
        model = _load_text_model(spec, config, device, kv_memory, rank)
        if (spec.draft_model or spec.heads) and not model.network.config.says_next:
            option = "draft_model" if spec.draft_model else "heads"
            raise ModelError(f"{option} is for models that say which token comes next, and this one refines canvases")
        return model if rank else replace(model, draft_model=_load_draft_model(model, device, kv_memory))
    except ModelError as error:
        raise ModelError(f"{spec.name}: {error}") from error


def _load_text_model(
    spec: ModelSpec, json: dict[str, Any], device: torch.device, kv_memory: int, rank: int = 0
) -> TextModel:
    family = FAMILIES[json["model_type"]]
    text = json if family.inside is None else json.get(family.inside) or {}
    try:
        config = read_config(json, spec.max_model_len)
        given = [part["eos_token_id"] for part in (json, text, family.defaults) if "eos_token_id" in part]
        eos = token_ids("eos_token_id", given[0] if given else None) or ()
        checkpoint = SafetensorsFolder(spec.folder)
        if config.tie_word_embeddings and has_a_head_of_its_own(checkpoint, family):
            log.warning("%s: lm_head.weight is not that of the embeddings, as config.json says, and is used", spec.name)
            config = replace(config, tie_word_embeddings=False)
        with torch.device("meta"):
            network = whole = Decoder(config)
    except (TypeError, ValueError) as error:
        raise ModelError(f"config.json: {error}") from error
    longest = config.max_position_embeddings
    if spec.max_model_len is not None and spec.max_model_len > longest:
        raise ModelError(f"max_model_len {spec.max_model_len} is more than the {longest} positions that the model knows")
    whole.fuse()
    if spec.ranks > 1:
        if spec.heads is not None:
            raise ModelError("heads are for models that tensor_parallel does not divide; draft_model is possible")
        network = divided(whole, Partition(rank, spec.ranks))
    if spec.quantization is not None:
        quantise(network.model.layers, spec.quantization)
    modules = json.get("num_nextn_predict_layers") or 0
    behind = "|".join(str(config.num_hidden_layers + i) for i in range(modules))
    own = replace(family, ignored=rf"{family.ignored}|^model\.layers\.({behind})\.") if modules else family
    targets = fitting(network, checkpoint, own, shares(network, whole) if isinstance(network, ParallelDecoder) else None)
    exact = "stride" in json or any(checkpoint.tensors[name].dtype in ("F32", "F64") for name in targets)
    dtype = DTYPES[spec.dtype] or (torch.float32 if exact else fast_dtype(device))
    _check_room(network, dtype, device, kv_memory, spec.ranks if device.type == "cpu" and not rank else 1)
    materialise(network, dtype, device)
    fill(spec.name, checkpoint, targets, own)
    stored = heads_of(spec, config, module_of_checkpoint(checkpoint, config, family) if modules else None, rank)
    if stored is not None:
        _check_room(stored.network, dtype, device, kv_memory)
    generation = _generation_config(spec)
    eos = generation.eos_token_ids if generation.eos_token_ids is not None else eos
    drawable = tuple(token for token in eos if token < config.vocab_size)
    limit = spec.max_model_len or longest
    heads = None if stored is None else stored.load(spec.name, dtype, device)
    canvas = {**PUBLISHED, **generation.canvas} if config.self_conditioning else {}
    return TextModel(spec, network.eval(), drawable, limit, _count(whole), generation.sampling, canvas, heads)


def _load_draft_model(model: TextModel, device: torch.device, kv_memory: int) -> TextModel | None:
    """Raises ModelError for one that does not read and write the same tokens."""
    folder = model.spec.draft_model
    if folder is None:
        return None
    spec = ModelSpec(model.spec.name, folder, dtype=model.spec.dtype)
    try:
        _check_tokenizer(spec)
        json_ = _read_json(spec, "config.json")
        if json_.get("model_type") not in FAMILIES:
            raise ModelError(f"model_type {json_.get('model_type')!r} is not supported; supported: {', '.join(FAMILIES)}")
        if _vocabulary(spec) != _vocabulary(model.spec):
            raise ModelError(f"{folder} has other tokens than {model.spec.folder}: a guess must be one of the model's own tokens")
        draft = _load_text_model(spec, json_, device, kv_memory)
        if not draft.network.config.says_next:
            raise ModelError(f"{folder} does not say which token comes next: it refines canvases")
        return replace(draft, heads=None)
    except ModelError as error:
        raise ModelError(f"draft_model: {error}") from error


def _vocabulary(spec: ModelSpec) -> dict[str, int]:
    path = spec.folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises nothing more specific
        raise ModelError(f"{path}: {error}") from error


def _load_image_model(spec: ModelSpec, json: dict[str, Any], device: torch.device) -> ImageModel:
    _refuse(spec, TEXT_OPTIONS, "is for text models, and this one makes pictures")
    kind = json["model_type"]
    _refuse(spec, PICTURE_OPTIONS, f"is for pipelines in diffusers' folder format, and this is a {kind}")
    network: FlowTransformer | MaskedAutoregressive
    try:
        if kind == FLOW:
            network = FlowTransformer(FlowTransformerConfig.from_json(json))
        else:
            network = MaskedAutoregressive(MaskedAutoregressiveConfig.from_json(json))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"config.json: {error}") from error
    dtype = DTYPES[spec.dtype] or fast_dtype(device)
    network = network.to(device=device, dtype=dtype).requires_grad_(False)
    checkpoint = SafetensorsFolder(spec.folder)
    fill(spec.name, checkpoint, fitting(network, checkpoint, Family()), Family())
    network.eval()
    served = PatchwiseNetwork(network) if isinstance(network, MaskedAutoregressive) else network
    return ImageModel(spec, served, _count(network), dtype)


def _load_pipeline(spec: ModelSpec, device: torch.device) -> ImageModel:
    _refuse(spec, TEXT_OPTIONS, "is for text models, and this one makes pictures")
    dtype = DTYPES[spec.dtype] or fast_dtype(device)
    if read_object(spec.folder / INDEX).get("_class_name") == DIT_PIPELINE:
        return _class_conditional(spec, load_dit_pipeline(spec.name, spec.folder, dtype, device), dtype)
    network = load_pipeline(spec.name, spec.folder, dtype, device, dict(spec.lora))
    network.steps = network.steps if spec.steps is None else spec.steps
    network.guidance = network.guidance if spec.guidance is None else spec.guidance
    return ImageModel(spec, network, network.parameters, dtype)


def _load_class_conditional(spec: ModelSpec, json: dict[str, Any], device: torch.device) -> ImageModel:
    _refuse(spec, TEXT_OPTIONS, "is for text models, and this one makes pictures")
    dtype = DTYPES[spec.dtype] or fast_dtype(device)
    return _class_conditional(spec, load_class_conditional(spec.name, spec.folder, json, dtype, device), dtype)


def _class_conditional(spec: ModelSpec, network: ClassConditional, dtype: torch.dtype) -> ImageModel:
    _refuse(spec, ("lora",), "is for pipelines whose prompt is a text, and this model's is a class")
    given = {"steps": spec.steps, "guidance": spec.guidance}
    chosen = {name: value for name, value in given.items() if value is not None}
    network.default_procedure = {**network.default_procedure, **chosen}
    return ImageModel(spec, network, network.parameters, dtype)


def _refuse(spec: ModelSpec, options: tuple[str, ...], why: str) -> None:
    given = [option for option in options if getattr(spec, option) not in (None, ())]
    if given:
        raise ModelError(f"{given[0]} {why}")


def _check_room(network: nn.Module, dtype: torch.dtype, device: torch.device, kv_memory: int, ranks: int = 1) -> None:
    """Before anything is read: parameters at their size on the device, and the KV cache, of all ranks that share it."""
    weights = sum(p.numel() * min(p.dtype.itemsize, dtype.itemsize) for p in network.parameters())
    weights, kv_memory, room = weights * ranks, kv_memory * ranks, available_memory(device)
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
