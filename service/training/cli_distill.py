"""`stride train distill`: a flow map from a model that is a velocity."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

from service.models.errors import ModelError
from service.models.flow_transformer import MODEL_TYPE
from service.models.model_spec import EMBEDDED, ModelSpec
from service.training.evaluate_shapes import ShapesEvaluationOptions, measure_quality
from service.training.flow_objectives import OBJECTIVES
from service.training.train_distill import DistillationOptions, Distiller, distill

_HELP = {
    "steps": "optimiser steps",
    "rows": "states a step",
    "velocity_share": "share of them that keep the velocity",
    "condition_dropout": "share of conditions replaced by the empty one, of those that keep the velocity",
    "power": "how far a row's loss is divided by itself; 1 suits meanflow",
    "matrix_rate": "peak learning rate of Muon, in AdamW's units",
    "other_rate": "peak learning rate of AdamW",
    "average_decay": "decay of the averaged weights",
    "warmup_steps": "steps in which the learning rates rise",
    "decay_fraction": "share of the steps, at the end, in which they fall to zero",
    "paths": "paths of the teacher that are kept to learn from",
    "paths_a_step": "new paths a step",
    "held_out_paths": "paths that are not learnt from, to measure the error of jumps on",
    "evaluate_every": "steps between evaluations and saved states",
}


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command beside others; it sets `run`, called with the parsed arguments."""
    parser = commands.add_parser("distill", help="teach a model to jump along the paths of its own velocity")
    parser.add_argument("--teacher", type=_folder, required=True, metavar="NAME_OR_FOLDER", help="an embedded model or a folder")
    parser.add_argument("--student", type=Path, required=True, help="folder for the student; training state in it/training")
    parser.add_argument("--objective", choices=OBJECTIVES, default="trajectory", help="what jumps learn from")
    parser.add_argument("--guidance", type=float, nargs=2, metavar=("LOW", "HIGH"), help="scales that the student learns")
    parser.add_argument("--difference", type=float, help="take time derivatives as differences of this width")
    right = "learn from paths that end in what was asked (of 16 none of which does, from all)"
    parser.add_argument("--only-correct", action="store_true", help=right)
    parser.add_argument("--device", default="cpu", help="where to train: cpu, cuda, cuda:1 (default cpu)")
    parser.add_argument("--resume", action="store_true", help="continue from the state in the student's folder")
    parser.add_argument("--captions", type=int, default=0, help="held-out captions to measure the student on at the end")
    parser.add_argument("--classifier", type=Path, help="scene_classifier.safetensors, for the Fréchet distance of its pictures")
    for item in fields(DistillationOptions):
        if isinstance(item.default, int | float) and not isinstance(item.default, bool):
            flag, text = "--" + item.name.replace("_", "-"), _HELP.get(item.name, item.name.replace("_", " "))
            parser.add_argument(flag, type=type(item.default), default=item.default, help=f"{text} (default {item.default})")
    parser.set_defaults(run=_run)


def _folder(text: str) -> Path:
    try:
        spec = ModelSpec.parse(text if "/" not in text and (EMBEDDED / text / "config.json").is_file() else f"teacher={text}")
    except ModelError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if spec.hub_id is not None:
        raise argparse.ArgumentTypeError(f"{text} is no folder with a config.json, and no embedded model")
    return spec.folder


def _run(args: argparse.Namespace) -> None:
    values = {item.name: getattr(args, item.name) for item in fields(DistillationOptions) if hasattr(args, item.name)}
    guidance = None if args.guidance is None else (args.guidance[0], args.guidance[1])
    options = DistillationOptions(**values | {"out": args.student, "guidance": guidance})
    if args.captions and not _draws_scenes(options.teacher):
        raise ValueError(f"--captions: nothing can say which pictures of {options.teacher} are correct")
    distiller = distill(options)
    if distiller.step == options.steps:
        _report(distiller, args)


def _draws_scenes(teacher: Path) -> bool:
    json_ = json.loads((teacher / "config.json").read_text())
    return isinstance(json_, dict) and json_.get("model_type") == MODEL_TYPE


def _report(distiller: Distiller, args: argparse.Namespace) -> None:
    scores = distiller.validate()
    print("| jumps | miss the teacher's picture by (share of its mean square) |\n|---|---|")
    for name, value in scores.items():
        print(f"| {name.removeprefix('error')} | {value:.4f} |", flush=True)
    if args.captions:
        low, high = distiller.pair.guidance_range
        guidance = (min(max(low, ShapesEvaluationOptions.guidance[0]), high),)
        measure_quality(
            ShapesEvaluationOptions(
                args.student, args.classifier, args.captions, guidance=guidance, seed=args.seed, threads=args.threads
            )
        )
