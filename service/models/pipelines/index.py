"""What a folder with a model_index.json says it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.models.errors import ModelError

INDEX = "model_index.json"
COMPONENT_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "spiece.model", "tokenizer.model")


@dataclass(frozen=True)
class Part:
    """A component that a family uses: the classes that it may have, in which library, and whether a folder may lack it.

    A `bare` one is no network: a tokeniser.
    """

    library: str
    classes: tuple[str, ...]
    optional: bool = False
    bare: bool = False


@dataclass(frozen=True)
class ModelIndex:
    """`class_name`: the pipeline's. `components`: (library, class) by name, of those that are there. `settings`: all else."""

    class_name: str
    components: Mapping[str, tuple[str, str]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> ModelIndex:
        """Raises ModelError for a file that does not parse or names no pipeline."""
        content = read_object(folder / INDEX)
        name = content.get("_class_name")
        if not isinstance(name, str):
            raise ModelError(f"{folder / INDEX}: _class_name must be the name of a pipeline, not {name!r}")
        components, settings = {}, {}
        for key, value in content.items():
            pair = isinstance(value, list) and len(value) == 2
            if pair and all(isinstance(word, str) for word in value):
                components[key] = (value[0], value[1])
            elif not key.startswith("_") and not (pair and value == [None, None]):
                settings[key] = value
        return cls(name, components, settings)

    @property
    def files(self) -> list[str]:
        """Patterns of what its components consist of: no pickles, no code, no copies in one file beside them."""
        return [f"{name}/{ending}" for name in self.components for ending in COMPONENT_FILES]

    def chosen(self, parts: Mapping[str, Part]) -> dict[str, str]:
        """The class of each of `parts` that is there.

        Raises ModelError for one that is missing, and for a class that is not among those of the part, by name.
        """
        chosen: dict[str, str] = {}
        for name, part in parts.items():
            if name not in self.components:
                if part.optional:
                    continue
                raise ModelError(f"{INDEX} has no {name}, without which {self.class_name} cannot run")
            library, class_name = self.components[name]
            if class_name not in part.classes or library != part.library:
                allowed = ", ".join(part.classes)
                raise ModelError(f"{INDEX}: {name} is of class {library}.{class_name}; supported: {part.library}'s {allowed}")
            chosen[name] = class_name
        return chosen


def read_object(path: Path) -> dict[str, Any]:
    """Raises ModelError for a file that is not there or not a JSON object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must be a JSON object")
    return content
