"""`stride train shapes`."""
from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from service.training.train_shapes import ShapesTrainingOptions, train_shapes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_commands(parser.add_subparsers(dest="shapes_command", required=True, metavar="COMMAND"))


def add_commands(commands) -> None:
    shapes = commands.add_parser("shapes", help="train the embedded image model")
    for item in dataclasses.fields(ShapesTrainingOptions):
        flag = "--" + item.name.replace("_", "-")
        if item.name == "out":
            shapes.add_argument(flag, type=Path, required=True)
        elif item.name == "resume":
            shapes.add_argument(flag, action="store_true")
        else:
            shapes.add_argument(flag, type=type(item.default), default=item.default)
    shapes.set_defaults(run=lambda args: train_shapes(ShapesTrainingOptions(**{f.name: getattr(args, f.name) for f in dataclasses.fields(ShapesTrainingOptions)})))


def run(args: argparse.Namespace) -> None:
    args.run(args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="stride train")
    add_arguments(parser)
    run(parser.parse_args())
