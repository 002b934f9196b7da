"""The loop of every training run: steps, evaluations at intervals, and a state on disk whenever it ends."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from service.training.checkpointing import StopSignal
from service.training.progress import TrainingProgress


class Trainer(Protocol):
    """`step` counts the steps taken."""

    @property
    def step(self) -> int: ...

    def train_step(self) -> Mapping[str, float | Tensor]:
        """One optimiser step; returns what is shown beside the progress bar."""
        ...

    def validate(self) -> Mapping[str, float]:
        """What an evaluation records, of the averaged weights."""
        ...

    def save(self) -> None:
        """Write what a resumed run needs."""
        ...

    def write(self, scores: Mapping[str, float] | None) -> None:
        """Leave the model as it is now where it is served from, if the `scores` of an evaluation that has just been made are
        good enough; without scores the run ends here."""
        ...


def run_training(
    trainer: Trainer,
    out: Path,
    steps: int,
    evaluate_every: int,
    *,
    stop_after: int | None = None,
    evaluate_at: Collection[int] = (),
) -> None:
    """Train to `steps`, or until SIGTERM or SIGINT or `stop_after` steps; state and model are written either way.

    Evaluations are every `evaluate_every` steps, at the last step, and at the steps `evaluate_at`; `out`/training/metrics.jsonl
    has a line for each. Raises ValueError before the first step where `evaluate_every` is below 1.
    """
    if evaluate_every < 1:
        raise ValueError(f"evaluate_every must be at least 1, not {evaluate_every}")
    last = steps if stop_after is None else min(steps, stop_after)
    with (
        StopSignal() as stop,
        TrainingProgress(out.name, steps, trainer.step, out / "training" / "metrics.jsonl") as progress,
    ):
        while trainer.step < last and not stop.requested:
            progress.advance(**trainer.train_step())
            if trainer.step % evaluate_every == 0 or trainer.step == steps or trainer.step in evaluate_at:
                scores = trainer.validate()
                progress.record(trainer.step, **scores)
                trainer.write(scores)
                trainer.save()
        trainer.save()
        trainer.write(None)
