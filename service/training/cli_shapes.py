"""`stride train shapes`, `stride train scene-classifier` and `stride train evaluate-shapes`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from service.training.evaluate_shapes import PROCEDURES, ShapesEvaluationOptions, evaluate_shapes, measure_quality
from service.training.scene_classifier import ClassifierOptions, train_scene_classifier
from service.training.train_shapes import ShapesTrainingOptions, train_shapes

_HELP = {
    "steps": "optimiser steps (of the velocity stage, for shapes)",
    "flow_map_steps": "optimiser steps of the flow-map stage that follows",
    "batch_size": "scenes a step",
    "matrix_rate": "peak learning rate of Muon, in AdamW's units",
    "other_rate": "peak learning rate of AdamW",
    "flow_map_rate_factor": "both rates of the flow-map stage, as a factor of those of the velocity stage",
    "average_decay": "decay of the averaged weights",
    "flow_map_average_decay": "the same in the flow-map stage",
    "flow_map_decay_fraction": "share of the flow-map stage over which the rates fall to zero",
    "patch_margin": "pixels on each side of its patch that a token sees",
    "caption_dropout": "share of captions replaced by the empty one",
    "noise_bias": "how far the times of the velocity rows lean to noise: the mean of a logit-normal",
    "velocity_share": "share of rows that still learn the velocity in the flow-map stage",
    "paths": "paths of the velocity that are kept to learn jumps from",
    "paths_a_step": "new paths, and new pictures of the model's own, a step of the flow-map stage",
    "paths_at_once": "how many are computed at a time: a GPU is fast at hundreds",
    "own_share": "share of the jumps that begin where the model's own jumps have led, not on a path",
    "own_paths": "pictures of the model's own whose jumps are kept",
    "evaluate_every": "steps between evaluations and saved states",
    "evaluate_captions": "held-out captions an evaluation",
    "workers": "processes that draw scenes ahead of time; in the flow-map stage two more draw those of paths",
    "rate": "peak learning rate",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three sub-commands to a parser."""
    add_commands(parser.add_subparsers(dest="shapes_command", required=True, metavar="COMMAND"))


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the three sub-commands beside others; each sets `run`, called with the parsed arguments."""
    shapes = commands.add_parser("shapes", help="train the embedded image model")
    shapes.add_argument("--out", type=Path, required=True, help="folder for the model; training state in OUT/training")
    shapes.add_argument("--start", type=Path, help="folder of a model whose weights to begin with, in place of fresh ones")
    shapes.add_argument("--device", default="cpu", help="where to train: cpu, cuda, cuda:1 (default cpu)")
    shapes.add_argument("--resume", action="store_true", help="continue from the state in OUT/training")
    _add_fields(shapes, ShapesTrainingOptions)
    shapes.set_defaults(run=_run_shapes)
    classifier = commands.add_parser("scene-classifier", help="train the classifier behind the Fréchet distance")
    classifier.add_argument("--out", type=Path, required=True, help="folder for scene_classifier.safetensors")
    _add_fields(classifier, ClassifierOptions)
    classifier.set_defaults(run=_run_classifier)
    evaluate = commands.add_parser("evaluate-shapes", help="measure an image model on held-out captions")
    evaluate.add_argument("--model", type=Path, required=True, help="folder of the model")
    evaluate.add_argument("--classifier", type=Path, help="scene_classifier.safetensors, for the Fréchet distance")
    evaluate.add_argument("--captions", type=int, default=1000)
    evaluate.add_argument("--procedures", nargs="+", choices=PROCEDURES, default=PROCEDURES, metavar="PROCEDURE")
    evaluate.add_argument("--guidance", type=float, nargs="+", default=[3.0])
    evaluate.add_argument("--grid", type=Path, help="PNG to draw captions by procedures into")
    evaluate.add_argument(
        "--bfloat16", action="store_true", help="run the network in bfloat16, as it is served on processors that are fast at it"
    )
    evaluate.add_argument("--quality", action="store_true", help="measure what quality.json has, and write it beside the weights")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--threads", type=int, default=1)
    evaluate.set_defaults(run=_run_evaluation)


def run(args: argparse.Namespace) -> None:
    """Run the parsed sub-command."""
    args.run(args)


def _add_fields(parser: argparse.ArgumentParser, options: type[Any]) -> None:
    """A flag for every number of an options dataclass, with its default."""
    for item in fields(options):
        if isinstance(item.default, int | float) and not isinstance(item.default, bool):
            flag = "--" + item.name.replace("_", "-")
            help_text = f"{_HELP.get(item.name, item.name.replace('_', ' '))} (default {item.default})"
            parser.add_argument(flag, type=type(item.default), default=item.default, help=help_text)


def _options(options: type[Any], args: argparse.Namespace) -> Any:
    return options(**{item.name: getattr(args, item.name) for item in fields(options)})


def _run_shapes(args: argparse.Namespace) -> None:
    train_shapes(_options(ShapesTrainingOptions, args))


def _run_classifier(args: argparse.Namespace) -> None:
    train_scene_classifier(_options(ClassifierOptions, args))


def _run_evaluation(args: argparse.Namespace) -> None:
    args.procedures, args.guidance = tuple(args.procedures), tuple(args.guidance)
    options = _options(ShapesEvaluationOptions, args)
    if args.quality:
        measure_quality(options)
    else:
        evaluate_shapes(options)


if __name__ == "__main__":
    main_parser = argparse.ArgumentParser(prog="stride train")
    add_arguments(main_parser)
    run(main_parser.parse_args())
