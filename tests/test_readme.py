"""README and CONTRIBUTING say what is there."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shlex
from pathlib import Path

import httpx
import msgspec
import pytest
from starlette.requests import Request

from service.api.edits import edit_body
from service.api.schemas import GenerateBody
from service.bench import add_arguments
from service.models.dit import DitConfig
from service.models.families import FAMILIES
from service.models.model_spec import OPTIONS
from service.models.pipelines.registry import FAMILIES as PIPELINES
from service.procedures.registry import PROCEDURES
from service.settings import Settings
from service.training import cli_distill
from service.training.flow_objectives import OBJECTIVES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    return README.split(f"## {heading}\n")[1].split("\n## ")[0]


def table_names(heading: str) -> set[str]:
    """The names in code quotes in the first column of a section's table."""
    rows = re.findall(r"^\|([^|]*)\|", section(heading), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_the_table_of_procedures_is_the_registry() -> None:
    assert table_names("Procedures") - {"threshold", "confidence", "eta", "gamma"} == set(PROCEDURES)


def test_the_table_of_settings_is_the_settings() -> None:
    assert table_names("Settings") == set(Settings.model_fields)


def test_the_table_of_families_is_the_families_that_are_served() -> None:
    families, options = section("Models").split("| option | |")
    first = re.findall(r"^\| (`[^|]*)\|", families, re.MULTILINE)
    assert {name for row in first[1:] for name in re.findall(r"`([^`]+)`", row)} == set(FAMILIES)
    listed = re.findall(r"^\| (`[^|]*)\|", options.split("The two embedded")[0], re.MULTILINE)
    assert {name for row in listed for name in re.findall(r"`(\w+)`", row)} == set(OPTIONS)


def test_the_table_of_pipelines_is_the_pipelines_that_are_served() -> None:
    assert table_names("Image models") - {"model_index.json"} == set(PIPELINES)


def test_the_table_of_class_conditional_models_is_what_their_config_takes() -> None:
    fields = re.findall(r"^\| (`[^|]*)\|", section("Class-conditional models"), re.MULTILINE)
    assert {name for row in fields for name in re.findall(r"`(\w+)`", row)} == set(DitConfig.__struct_fields__)


def test_the_bodies_of_the_curl_examples_are_valid() -> None:
    bodies = [json.loads(body) for body in re.findall(r"-d '(\{.*?\})'", README, re.DOTALL)]
    assert len(bodies) == 5
    for body in bodies:
        procedure = GenerateBody.model_validate(body).choice() or {"name": "flow_map"}
        msgspec.convert(procedure, PROCEDURES[procedure.pop("name")].parameters)


def test_the_form_of_the_curl_example_is_valid() -> None:
    (flags,) = re.findall(r"curl -s http://127.0.0.1:8000/v1/images/edits ([^|]*)\|", README)
    words = shlex.split(flags.replace("\\\n", " "))
    assert set(words[::2]) == {"-F"}
    fields = dict(word.split("=", 1) for word in words[1::2])
    files = {name: (value, b"a picture") for name, value in fields.items() if value.startswith("@")}
    texts = {name: value for name, value in fields.items() if name not in files}
    sent = httpx.Request("POST", "http://stride", data=texts, files=files)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": sent.read()}

    headers = [(b"content-type", sent.headers["content-type"].encode())]
    body = asyncio.run(edit_body(Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)))
    assert set(fields) <= body.model_fields_set and body.strength == 0.7


def test_the_python_example_compiles() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    compile(example, "README.md", "exec")


def test_the_bench_commands_have_flags_that_exist() -> None:
    commands = re.findall(r"^\.venv/bin/stride bench (.*)$", README, re.MULTILINE)
    assert commands
    for command in commands:
        parser = argparse.ArgumentParser(exit_on_error=False)
        add_arguments(parser)
        parser.parse_args(shlex.split(command))


def test_the_table_of_objectives_is_that_of_distillation() -> None:
    assert table_names("Training and distilling") == set(OBJECTIVES)


def test_the_train_commands_have_flags_that_exist() -> None:
    commands = re.findall(r"^\.venv/bin/stride train (.*)$", README, re.MULTILINE)
    assert commands
    for command in commands:
        parser = argparse.ArgumentParser(exit_on_error=False)
        cli_distill.add_commands(parser.add_subparsers())
        parser.parse_args(shlex.split(command))


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`?\bmake ([a-z]+)\b(?=`|\n| +#)", README + CONTRIBUTING)) <= targets


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    quoted = re.findall(r"`((?:service|kernels|tests|deploy)/[a-z_./]+)`", text)
    missing = [name for name in linked + quoted if not (ROOT / name).exists()]
    assert not missing
