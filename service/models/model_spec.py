"""What `--model` says; without torch, so that the command can refuse it before any process starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from service.models.errors import ModelError

EMBEDDED = Path(__file__).parent / "embedded"
Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
Quantization = Literal["int8", "fp8"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
OPTIONS = (
    "dtype", "device", "revision", "quantization", "max_model_len", "kv_memory", "tensor_parallel", "draft_model", "heads",
    "lora", "steps", "guidance",
)  # fmt: skip


@dataclass(frozen=True)
class ModelSpec:
    """A name, where the model lies (a folder, or the id of a repository on the hub), and options; None: not given.

    `draft_model` is the folder of a smaller model that guesses this one's tokens, `heads` that of heads which do. `lora` are
    adapters by name: safetensors files, or folders with one. `steps` and `guidance` are for requests that say nothing.
    `tensor_parallel` is how many ranks hold a part of it each; None is one, which holds it whole.
    """

    name: str
    folder: Path
    hub_id: str | None = None
    revision: str | None = None
    max_model_len: int | None = None
    dtype: Dtype | None = None
    device: str | None = None
    quantization: Quantization | None = None
    kv_memory: int | None = None
    tensor_parallel: int | None = None
    draft_model: Path | None = None
    heads: Path | None = None
    lora: tuple[tuple[str, Path], ...] = ()
    steps: int | None = None
    guidance: float | None = None

    @property
    def ranks(self) -> int:
        return self.tensor_parallel or 1

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """`shapes`, `NAME=FOLDER` or `NAME=ORG/REPOSITORY`, each with `,key=value` behind it as often as needed;
        `lora=ADAPTER:FILE` once for each adapter.

        Raises ModelError for a place that does not exist, or an option that is not known or has a wrong value.
        """
        place, *rest = text.split(",")
        name, separator, path = place.partition("=")
        if not name or (separator and not path):
            missing = "a folder or hub id" if name else "a name"
            raise ModelError(f"--model {text}: {missing} is missing; NAME=FOLDER_OR_HUB_ID")
        folder = Path(path) if separator else EMBEDDED / name
        options: dict[str, str] = {}
        adapters = [option.removeprefix("lora=") for option in rest if option.startswith("lora=")]
        for option in (option for option in rest if not option.startswith("lora=")):
            key, _, value = option.partition("=")
            if key not in OPTIONS:
                raise ModelError(f"--model {name}: option {key!r} is not supported; supported: {', '.join(OPTIONS)}")
            if key in options:
                raise ModelError(f"--model {name}: {key} is given twice")
            options[key] = value
        hub_id = None
        if not any((folder / file).is_file() for file in ("config.json", "model_index.json")):
            if not separator:
                known = ", ".join(sorted(p.parent.name for p in EMBEDDED.glob("*/config.json")))
                raise ModelError(f"--model {text}: no embedded model is called {name!r}; there are: {known}; others: NAME=FOLDER")
            if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path):
                raise ModelError(f"--model {name}: {folder} is not a folder with a config.json or a model_index.json")
            hub_id = path
        if "revision" in options and hub_id is None:
            raise ModelError(f"--model {name}: revision is for models from the hub, and {folder} is a folder")
        try:
            return cls(name, folder, hub_id, options.get("revision"), lora=_adapters(adapters), **_values(options))
        except ValueError as error:
            raise ModelError(f"--model {name}: {error}") from None


def parse_all(texts: Sequence[str]) -> list[ModelSpec]:
    """Raises ModelError as `ModelSpec.parse` does, and where two have one name."""
    specs: dict[str, ModelSpec] = {}
    for spec in map(ModelSpec.parse, texts):
        if spec.name in specs:
            raise ModelError(f"--model {spec.name}: two models are called {spec.name!r}")
        specs[spec.name] = spec
    return list(specs.values())


def _values(options: dict[str, str]) -> dict[str, Any]:
    """The options that are not about the place, converted. Raises ValueError."""
    values: dict[str, Any] = {}
    for key, value in options.items():
        match key:
            case "max_model_len" | "steps":
                if not value.isdecimal() or int(value) < 1:
                    raise ValueError(f"{key} must be a positive integer, not {value!r}")
                values[key] = int(value)
            case "guidance":
                if not re.fullmatch(r"\d+(\.\d+)?", value):
                    raise ValueError(f"guidance must be a number, 0 or more, not {value!r}")
                values[key] = float(value)
            case "kv_memory":
                values[key] = parse_bytes(key, value)
            case "dtype":
                if value not in ("auto", *DTYPES):
                    raise ValueError(f"dtype must be one of auto, {', '.join(DTYPES)}, not {value!r}")
                values[key] = None if value == "auto" else value
            case "quantization":
                if value not in QUANTIZATIONS:
                    raise ValueError(f"quantization must be {' or '.join(QUANTIZATIONS)}, not {value!r}")
                values[key] = value
            case "tensor_parallel":
                if not value.isdecimal() or int(value) < 1:
                    raise ValueError(f"tensor_parallel must be a positive integer, not {value!r}")
                values[key] = int(value) if int(value) > 1 else None
            case "draft_model" | "heads":
                if not (Path(value) / "config.json").is_file():
                    raise ValueError(f"{key}: {value or 'nothing'} is not a folder with a config.json")
                values[key] = Path(value)
            case "device":
                values[key] = value
    return values


def _adapters(texts: list[str]) -> tuple[tuple[str, Path], ...]:
    """`ADAPTER:FILE`, each of another name. Raises ValueError."""
    adapters: dict[str, Path] = {}
    for text in texts:
        name, _, place = text.partition(":")
        if not re.fullmatch(r"[\w.-]+", name) or not place:
            raise ValueError(f"lora must be ADAPTER:FILE, the name of letters, digits, '_', '.' and '-', not {text!r}")
        if name in adapters:
            raise ValueError(f"lora: there are two adapters called {name}")
        adapters[name] = Path(place)
    return tuple(adapters.items())


def parse_bytes(key: str, text: str) -> int:
    """`268435456`, `256MiB`, `1.5GiB`. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]iB)?", text)
    count = int(float(found[1]) * UNITS[found[2] or ""]) if found else 0
    if count < 1:
        raise ValueError(f"{key} must be a number of bytes such as 268435456, 256MiB or 2GiB, not {text!r}")
    return count


def readable(count: float) -> str:
    """Bytes for a person: `1.5 GiB`."""
    unit = "B"
    for unit, size in reversed([("B", 1), *list(UNITS.items())[1:]]):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g} {unit}"
