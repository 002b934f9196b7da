"""Small pipelines, written once a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from service.models.pipelines.pipeline import Pipeline
from tests.pipelines import FAMILIES, load


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family of tests/pipelines.py."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = FAMILIES[name].write(tmp_path_factory.mktemp(name))
        return folders[name]

    return folder


@pytest.fixture(scope="session")
def network_of(pipeline_folder: Callable[[str], Path]) -> Callable[[str], Pipeline]:
    networks: dict[str, Pipeline] = {}

    def network(name: str) -> Pipeline:
        if name not in networks:
            networks[name] = load(pipeline_folder(name))
        return networks[name]

    return network
