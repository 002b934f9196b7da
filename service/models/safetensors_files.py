"""The tensors of a checkpoint folder: one model.safetensors, or shards listed in model.safetensors.index.json.

Other libraries have another stem than `model`: diffusers' is diffusion_pytorch_model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from service.models.errors import ModelError

BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}
KEEP_MAPPED = 64 << 20


@dataclass(frozen=True)
class StoredTensor:
    """What a file's header says: `dtype` by safetensors' names."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * BITS[self.dtype] // 8


class SafetensorsFolder:
    """Headers are read at once, tensors one by one. Raises ModelError for a folder without safetensors, an index that does
    not parse or names a file that is not there, and a file that is truncated or broken."""

    def __init__(self, folder: Path, stem: str = "model") -> None:
        self.tensors: dict[str, StoredTensor] = {}
        for file in _files(folder, stem):
            try:
                # Torch would ask the kernel for room for the whole file, which a model that does not fit does not get.
                with safe_open(file, framework="numpy") as opened:
                    for name in opened.keys():  # noqa: SIM118
                        header = opened.get_slice(name)
                        self.tensors[name] = StoredTensor(file, tuple(header.get_shape()), header.get_dtype())
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{file}: {error} (is the file complete?)") from error

    def tensor(self, name: str) -> Tensor:
        """One of them, memory-mapped."""
        with safe_open(self.tensors[name].file, framework="pt") as opened:
            return opened.get_tensor(name)

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, file by file, memory-mapped: it must be copied before the next one is asked for.

        A file is opened anew now and then, so that the pages that were read do not stay in this process.
        """
        names = sorted(self.tensors, key=lambda name: (self.tensors[name].file, name))
        while names:
            file, mapped = self.tensors[names[0]].file, 0
            with safe_open(file, framework="pt") as opened:
                while names and self.tensors[names[0]].file == file and mapped < KEEP_MAPPED:
                    tensor = opened.get_tensor(names[0])
                    mapped += tensor.nbytes
                    yield names.pop(0), tensor
                    del tensor


def _files(folder: Path, stem: str) -> list[Path]:
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        try:
            content = json.loads(index.read_text())
        except (OSError, ValueError) as error:
            raise ModelError(f"{index}: {error}") from error
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict):
            raise ModelError(f"{index}: weight_map must be an object from tensor names to file names")
        names = sorted(set(map(str, weight_map.values())))
        files = [folder / name for name in names if isinstance(name, str) and Path(name).name == name]
        missing = next((file for file in files if not file.is_file()), None)
        if len(files) < len(names) or missing:
            raise ModelError(f"{index} names {missing.name if missing else 'files outside of its folder'}, which is not there")
        return files
    if single.is_file():
        return [single]
    variant = next(iter(sorted(p.name for p in folder.glob(f"{stem}.*.safetensors"))), None)
    if variant is not None:
        raise ModelError(f"{folder} has no {single.name}; {variant} is a variant: save the pipeline without one")
    others = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5") for p in folder.glob(pattern))
    found = f"; {others[0]} is not read: pickles can run code, and other formats are not supported" if others else ""
    raise ModelError(f"{folder} has neither {single.name} nor {index.name}{found}")
