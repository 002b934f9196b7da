"""A server that cannot serve says why and ends; it does not wait for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.api.server import DrainingServer
from service.cli import main
from service.settings import Settings


def serve(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, env={**os.environ, **variables})


@pytest.mark.parametrize(
    "models,words",
    [
        (["nobody"], "--model nobody: no embedded model is called 'nobody'"),
        (["shapes", "new=/nowhere"], "--model new: /nowhere is not a folder"),
        (["shapes,dtyp=float32"], "--model shapes: option 'dtyp' is not supported; supported: dtype, "),
        (["shapes", "shapes,dtype=float32"], "--model shapes: two models are called 'shapes'"),
    ],
)
def test_a_model_that_cannot_be_there_is_refused_before_anything_starts(
    models: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(DrainingServer, "run", lambda _: pytest.fail("a server was started"))
    assert main(["serve", *(word for model in models for word in ("--model", model))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stride serve: {words}")


def test_a_folder_of_an_unknown_architecture_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt9"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    ended = serve("--model", f"new={tmp_path}")
    assert ended.returncode == 3 and "model_type 'gpt9' is not supported" in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "arguments,variables,words",
    [
        (("--config", "/nowhere.toml"), {}, "--config: there is no file /nowhere.toml"),
        ((), {"STRIDE_MODELS": "shapes"}, "models"),
        (("--log-level", "silly"), {}, "log_level"),
        (("--max-waiting", "none"), {}, "max_waiting"),
        ((), {"STRIDE_API_KEY": ""}, "api_key"),
        ((), {"STRIDE_OTLP_ENDPOINT": "collector:4318"}, "otlp_endpoint"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(arguments: tuple[str, ...], variables: dict[str, str], words: str) -> None:
    ended = serve(*arguments, **variables)
    assert ended.returncode == 2 and words in ended.stderr and "Traceback" not in ended.stderr


def test_a_machines_collector_stops_no_server_that_cannot_speak_to_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.delitem(sys.modules, "service.api.tracing", raising=False)
    monkeypatch.setattr("service.cli.configure_logging", lambda *_: None)
    monkeypatch.setattr(DrainingServer, "run", lambda server: setattr(server, "started", True))
    assert main(["serve", "--model", "shapes"]) == 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("OTEL_EXPORTER_OTLP_ENDPOINT is set, and no traces are sent") and "stride[tracing]" in line
    caplog.clear()
    assert main(["serve", "--model", "shapes", "--otlp-endpoint", "http://127.0.0.1:8"]) == 2 and not caplog.records


def test_an_empty_collector_is_none_and_leaves_it_to_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_OTLP_ENDPOINT", "")
    for standard, endpoint in (("", None), ("collector:4318", None), ("http://machine:4318", "http://machine:4318")):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", standard)
        assert Settings().otlp_endpoint == endpoint


def test_an_engine_whose_server_was_killed_while_it_loaded_its_models_ends_too(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    settings = Settings.model_validate({"models": ["shakespeare"]}).model_dump_json()
    command = [sys.executable, "-m", "service.engine.process", str(tmp_path), settings, str(gone.pid)]
    assert subprocess.run(command, timeout=60).returncode == 0
