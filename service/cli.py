"""The command `stride`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import TYPE_CHECKING

import uvicorn
from pydantic import ValidationError
from pydantic_settings import SettingsError

from service import __version__
from service.logs import configure_logging
from service.settings import STANDARD_ENDPOINT, Settings, load_settings, standard_endpoint

if TYPE_CHECKING:
    from fastapi import FastAPI

PLACES = "repeatable; PLACE: a checkpoint's folder or the id of a repository on the Hugging Face hub"


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", action="append", dest="models", metavar="NAME[=PLACE][,key=value...]", help=PLACES)
    parser.add_argument("--config", type=Path, help="TOML file of settings")
    for name, field in Settings.model_fields.items():
        if name == "models":
            continue
        flag = f"--{name.replace('_', '-')}"
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=field.description)
        else:
            parser.add_argument(flag, default=None, help=field.description)


def _settings(args: argparse.Namespace) -> Settings:
    flags = {name: getattr(args, name) for name in Settings.model_fields}
    return load_settings(args.config, **flags)


def _serve(args: argparse.Namespace) -> int:
    from service.api.app import TracingUnavailable
    from service.api.server import DrainingServer
    from service.models.model_spec import ModelError, parse_all

    if args.config is not None and not args.config.is_file():
        print(f"stride serve: --config: there is no file {args.config}", file=sys.stderr)
        return 2
    try:
        settings = _settings(args)
    except ValidationError as error:
        for problem in error.errors():
            print(f"stride serve: {'.'.join(map(str, problem['loc']))}: {problem['msg']}", file=sys.stderr)
        return 2
    except (SettingsError, TOMLDecodeError) as error:
        print(f"stride serve: {error} (lists in STRIDE_* variables are JSON)", file=sys.stderr)
        return 2
    try:
        parse_all(settings.models)
    except ModelError as error:
        print(f"stride serve: {error}", file=sys.stderr)
        return 2
    failed = False

    def give_up() -> None:
        nonlocal failed
        failed = server.should_exit = True

    configure_logging(settings.log_level, settings.log_format, "api")
    try:
        app = _application(settings, give_up)
    except TracingUnavailable as error:
        print(f"stride serve: {error}", file=sys.stderr)
        return 2
    # What is left after draining are clients that do not read: they get no further seconds of the grace period.
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, log_config=None, access_log=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = DrainingServer(config, app.state.drain.run, app.state.drain.break_off)
    server.run()
    if server.signal is not None:
        return 128 + server.signal
    return 0 if server.started and not failed else 3


def _application(settings: Settings, give_up: Callable[[], None]) -> FastAPI:
    """Without traces, and with a warning, where only a variable that is not Stride's own asks for them and they are not
    installed. Raises TracingUnavailable where Stride was asked."""
    from service.api.app import TracingUnavailable, create_app

    try:
        return create_app(settings, give_up)
    except TracingUnavailable as error:
        if settings.otlp_endpoint != standard_endpoint():
            raise
        logging.getLogger("stride.api").warning("%s is set, and no traces are sent: %s", STANDARD_ENDPOINT, error)
        return create_app(settings.model_copy(update={"otlp_endpoint": None}), give_up)


def _models(args: argparse.Namespace) -> int:
    from service.models.model_spec import EMBEDDED

    for path in sorted(EMBEDDED.glob("*/config.json")):
        config = json.loads(path.read_text())
        print(f"{path.parent.name}\t{config['model_type']}\t{path.parent}")
    return 0


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    from service.training import cli_distill, cli_shapes, cli_text

    commands = parser.add_subparsers(dest="task", required=True)
    cli_text.add_commands(commands)
    cli_shapes.add_commands(commands)
    cli_distill.add_commands(commands)


def _train(args: argparse.Namespace) -> int:
    """What is wrong with the options or the files of a training command is said in a line."""
    try:
        args.run(args)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        raise SystemExit(f"stride train {args.task}: {error}") from error
    return 0


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="stride", description="One server for sequence expansion and state refinement.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve models over HTTP")
    _serve_arguments(serve)
    serve.set_defaults(run=_serve)
    models = commands.add_parser("models", help="list the embedded models")
    models.set_defaults(run=_models)
    commands.add_parser("version", help="print the version").set_defaults(run=lambda _: print(__version__) or 0)
    words = sys.argv[1:] if argv is None else argv
    bench = commands.add_parser("bench", help="drive a server with mixed load and report percentiles")
    train = commands.add_parser("train", help="train and evaluate the embedded models")
    if words[:1] == ["bench"]:
        from service import bench as bench_command

        bench_command.add_arguments(bench)
        bench.set_defaults(run=bench_command.run)
    if words[:1] == ["train"]:
        _train_arguments(train)
    args = parser.parse_args(words)
    return _train(args) if args.command == "train" else int(args.run(args) or 0)


if __name__ == "__main__":
    sys.exit(main())
