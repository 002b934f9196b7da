"""A folder in diffusers' format becomes a network of the engine's."""

from __future__ import annotations

import importlib
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from service.models.errors import ModelError
from service.models.lora_file import adapter_files
from service.models.memory import available_memory
from service.models.model_spec import readable
from service.models.pipelines.components import library_class, load_network, load_tokenizer, stored
from service.models.pipelines.index import INDEX, ModelIndex, Part, read_object
from service.models.pipelines.pipeline import Components, Pipeline
from service.models.pipelines.registry import FAMILIES

log = logging.getLogger("stride.models")


def load_pipeline(
    name: str, folder: Path, dtype: torch.dtype, device: torch.device, lora: Mapping[str, Path] | None = None
) -> Pipeline:
    """`name` is for the log; `lora`: adapters' files by name.

    Raises ModelError for a family or class that is not supported, optional libraries that are not installed, files that are
    missing or broken, tensors that do not fit, a scheduler whose noise is not known, and too little memory.
    """
    index = ModelIndex.read(folder)
    family = FAMILIES.get(index.class_name)
    if family is None:
        raise ModelError(f"{INDEX}: pipelines of class {index.class_name} are not supported; supported: {', '.join(FAMILIES)}")
    classes = index.chosen(family.parts)
    for part, class_name in classes.items():
        library_class(family.parts[part].library, class_name)
    scheduler = read_object(folder / "scheduler" / "scheduler_config.json")
    networks = {part: family.parts[part] for part in classes if not family.parts[part].bare}
    files = adapter_files(lora or {})
    sizes = _check_room(folder, networks, dtype, device, sum(file.stat().st_size for file in files.values()))
    if not sys.stderr.isatty():
        for library in {part.library for part in networks.values()}:
            importlib.import_module(f"{library}.utils.logging").disable_progress_bar()
    log.info("loading %s: %s, %s of weights in %s", name, index.class_name, readable(sum(sizes.values())), dtype)
    loaded: dict[str, Any] = {}
    for number, (part, class_name) in enumerate(classes.items(), start=1):
        if part not in networks:
            loaded[part] = load_tokenizer(folder / part, family.parts[part], class_name)
            continue
        log.info("loading %s: %s, %s (%d of %d)", name, part, readable(sizes[part]), number, len(classes))
        loaded[part] = load_network(folder / part, family.parts[part], class_name, dtype, device)
    try:
        return family(Components(loaded, index.settings, scheduler, dtype, device, files))
    except ValueError as error:
        raise ModelError(f"{index.class_name}: {error}") from error


def _check_room(
    folder: Path, networks: Mapping[str, Part], dtype: torch.dtype, device: torch.device, adapters: int
) -> dict[str, int]:
    """Bytes of weights that each network takes on the device, from the headers alone. Raises ModelError if they do not fit
    with so many bytes of adapters."""
    sizes = {
        name: sum(math.prod(tensor.shape) for tensor in stored(folder / name, part).tensors.values()) * dtype.itemsize
        for name, part in networks.items()
    }
    needed, room = sum(sizes.values()) + adapters, available_memory(device)
    if needed > room:
        each = ", ".join(f"{name} {readable(size)}" for name, size in sizes.items())
        each += f", adapters {readable(adapters)}" if adapters else ""
        hint = "; dtype=bfloat16 needs half" if dtype == torch.float32 else ""
        raise ModelError(f"needs {readable(needed)} of memory for weights ({each}), and {device} has {readable(room)}{hint}")
    return sizes
