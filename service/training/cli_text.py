"""`stride train shakespeare`, `judge`, `heads` and `evaluate-text`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from service.training.evaluate_heads import HeadScore
from service.training.evaluate_text import TextEvaluationOptions, evaluate_text
from service.training.heads_folder import KINDS
from service.training.train_heads import HeadTrainingOptions, train_heads
from service.training.train_text import TextTrainingOptions, train_text

SHAKESPEARE_STEPS = 2000
DISTILL_STEPS = 1000
JUDGE_STEPS = 1000
HEADS_STEPS = 1000
SHARED = ("text", "out", "steps", "seed", "rows", "evaluate_every", "threads", "resume")
SHAKESPEARE_SHAPE: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "layers": 6,
    "heads": 3,
    "kv_heads": 1,
    "dropout": 0.05,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands to a parser."""
    add_commands(parser.add_subparsers(dest="text_command", required=True, metavar="COMMAND"))


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-commands beside others; each sets `run`, called with the parsed arguments."""
    shakespeare = commands.add_parser("shakespeare", help="train the embedded text model")
    _add_training_arguments(shakespeare, steps=SHAKESPEARE_STEPS, seed=1)
    shakespeare.set_defaults(run=_run_shakespeare)
    distill = commands.add_parser("distill-blocks", help="train the blocks of a text model on texts that it wrote itself")
    _add_training_arguments(distill, steps=DISTILL_STEPS, seed=3)
    distill.add_argument("--teacher", type=Path, required=True, help="folder of the model to begin with")
    distill.add_argument("--sample-temperature", type=float, default=0.6, help="temperature of its texts")
    distill.set_defaults(run=_run_distillation)
    judge = commands.add_parser("judge", help="train the causal model that scores samples")
    _add_training_arguments(judge, steps=JUDGE_STEPS, seed=2)
    judge.set_defaults(run=_run_judge)
    _add_heads(commands)
    evaluate = commands.add_parser("evaluate-text", help="measure a text model and its samples")
    evaluate.add_argument("--model", type=Path, required=True, help="folder of the model")
    evaluate.add_argument("--judge", type=Path, help="folder of the judge; without it only likelihoods are measured")
    evaluate.add_argument("--text", type=Path, required=True, help="the text that the model was trained on")
    evaluate.add_argument("--samples", type=int, default=32)
    evaluate.add_argument("--length", type=int, default=256, help="tokens a sample")
    evaluate.add_argument("--temperature", type=float, nargs="+", default=[1.0, 0.8])
    evaluate.add_argument("--threshold", type=float, nargs="+", default=[0.9, 0.7, 0.5])
    evaluate.add_argument("--block-length", type=int, nargs="+", default=[8, 16])
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--threads", type=int, default=1)
    evaluate.set_defaults(run=_run_evaluation)


def run(args: argparse.Namespace) -> None:
    """Run the parsed sub-command."""
    args.run(args)


def _add_training_arguments(parser: argparse.ArgumentParser, steps: int, seed: int, rows: int = 12) -> None:
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text; its last tenth is kept for validation")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is trained; training state in OUT/training")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--rows", type=int, default=rows, help="windows a step")
    parser.add_argument("--evaluate-every", type=int, default=100, help="steps between evaluations and saved states")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="continue from the state in OUT/training")


def _add_heads(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    heads = commands.add_parser("heads", help="train heads that draft for a text model, which stays as it is")
    heads.add_argument("--model", type=Path, required=True, help="folder of the model")
    heads.add_argument("--kind", choices=KINDS, required=True)
    heads.add_argument("--depths", type=int, default=5, help="tokens that a draft learns to be long")
    heads.add_argument("--samples", type=int, default=512, help="texts that the model writes to learn from")
    heads.add_argument("--length", type=int, default=256, help="tokens a window")
    _add_training_arguments(heads, steps=HEADS_STEPS, seed=5, rows=8)
    heads.set_defaults(run=_run_heads)


def _run_shakespeare(args: argparse.Namespace) -> None:
    train_text(_options(args, **SHAKESPEARE_SHAPE))


def _run_distillation(args: argparse.Namespace) -> None:
    rates = {"matrix_rate": 2.5e-3, "other_rate": 1.5e-3, "decay_fraction": 0.7}
    source = {"teacher": args.teacher, "sample_temperature": args.sample_temperature}
    train_text(_options(args, **SHAKESPEARE_SHAPE, **rates, **source))


def _run_judge(args: argparse.Namespace) -> None:
    train_text(_options(args, hidden_size=192, intermediate_size=512, layers=4, heads=3, kv_heads=3, masked_weight=0.0))


def _options(args: argparse.Namespace, **others: Any) -> TextTrainingOptions:
    return TextTrainingOptions(**{name: getattr(args, name) for name in SHARED}, **others)


def _run_heads(args: argparse.Namespace) -> None:
    own = ("model", "kind", "depths", "samples", "length")
    trainer = train_heads(HeadTrainingOptions(**{name: getattr(args, name) for name in SHARED + own}))
    if trainer.step == args.steps:
        _print_scores(trainer.evaluate())


def _print_scores(scores: list[HeadScore]) -> None:
    depths = range(1, len(scores[0].acceptance) + 1)
    print("| temperature | tokens/forward | " + " | ".join(f"depth {depth}" for depth in depths) + " |")
    print("|---|---|" + "---|" * len(depths))
    for score in scores:
        cells = " | ".join(f"{accepted:.3f}" for accepted in score.acceptance)
        print(f"| {score.temperature:g} | {score.tokens_per_forward:.2f} | {cells} |", flush=True)


def _run_evaluation(args: argparse.Namespace) -> None:
    evaluate_text(
        TextEvaluationOptions(
            model=args.model,
            judge=args.judge,
            text=args.text,
            samples=args.samples,
            length=args.length,
            temperatures=tuple(args.temperature),
            thresholds=tuple(args.threshold),
            block_lengths=tuple(args.block_length),
            seed=args.seed,
            threads=args.threads,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
