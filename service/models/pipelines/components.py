"""One component of a pipeline, from its folder: a network with its weights, or a tokeniser."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from service.models.errors import ModelError
from service.models.pipelines.index import Part, read_object
from service.models.safetensors_files import BITS, SafetensorsFolder

EXTRA = "images"
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
DTYPE = {"diffusers": "torch_dtype", "transformers": "dtype"}
"""What the library calls the dtype that a network is loaded in."""
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
COUNTS = ("I64",)
"""Dtypes of tensors that are no weights, such as a batch norm's count of batches."""
UNUSED = r"(^|\.)position_ids$|^(lm_head|decoder)\."
"""Tensors that published text encoders hold and nobody reads here: heads for text, constants of former versions."""


def stored(folder: Path, part: Part) -> SafetensorsFolder:
    """The headers of a network's weights. Raises ModelError for a file that is missing, truncated, no safetensors or
    quantised."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json")
    for sign in ("quantization_config", "quantization"):
        if sign in read_object(folder / "config.json"):
            raise ModelError(f"{folder / 'config.json'}: {sign}: quantised pipelines are not supported")
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{folder}: adapters inside of a component are not supported")
    tensors = SafetensorsFolder(folder, STEMS[part.library])
    for name, tensor in tensors.tensors.items():
        if tensor.dtype not in (*BITS, *COUNTS):
            raise ModelError(f"{folder.name}: tensor {name} is stored as {tensor.dtype}; supported: {', '.join(BITS)}")
    return tensors


def load_network(folder: Path, part: Part, class_name: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A network that lies on `device` in `dtype`, read from safetensors alone, each tensor once.

    Raises ModelError for a config that the class does not take, tensors that are missing, left over or of another shape,
    and numbers that are not finite.
    """
    options: dict[str, Any] = {DTYPE[part.library]: dtype}
    if device.type != "cpu":
        options["device_map"] = {"": device}
    try:
        network, report = library_class(part.library, class_name).from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported, and refused below by name
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # the libraries raise whatever they stumble over in a folder that does not fit the class
        raise ModelError(f"{folder.name} cannot be read as {class_name}: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{folder.name}: tensor {missing[0]} is missing from the checkpoint")
    extra = sorted(name for name in report["unexpected_keys"] if not re.search(UNUSED, name))
    if extra:
        raise ModelError(f"{folder.name} holds tensors that {class_name} does not have: {', '.join(extra[:5])}")
    for name, given, expected in report["mismatched_keys"]:
        raise ModelError(f"{folder.name}: tensor {name} has shape {tuple(given)}, expected {tuple(expected)}")
    for name, parameter in network.named_parameters():
        # A pass at the speed of memory; nan is both least and most.
        if parameter.numel() and not all(torch.isfinite(bound) for bound in parameter.aminmax()):
            raise ModelError(f"{folder.name}: tensor {name} holds numbers that are not finite (nan or inf)")
    return network.eval().requires_grad_(False)


def load_tokenizer(folder: Path, part: Part, class_name: str) -> Any:
    """Raises ModelError for a folder without a tokeniser's files, or with some that do not parse."""
    if not any((folder / name).is_file() for name in VOCABULARIES):
        # The class would make one without words.
        raise ModelError(f"{folder} has no vocabulary; one of {', '.join(VOCABULARIES)}")
    try:
        return library_class(part.library, class_name).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise ModelError(f"{folder.name} cannot be read as {class_name}: {error}") from error


def library_class(library: str, class_name: str) -> Any:
    """Raises ModelError where the optional libraries are not installed or do not know the class yet."""
    try:
        return getattr(importlib.import_module(library), class_name)
    except ImportError as error:
        raise ModelError(f"pipelines need the optional libraries of pip install 'stride[{EXTRA}]': {error}") from error
    except AttributeError:
        raise ModelError(f"the installed {library} has no {class_name}; a newer one does") from None
