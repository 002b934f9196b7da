"""What a training run tells its operator: a progress bar, and one JSON line per evaluation in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from torch import Tensor
from tqdm import tqdm


class TrainingProgress:
    """A bar over the steps of a run, and `metrics.jsonl` beside the training state."""

    def __init__(self, title: str, steps: int, first_step: int, metrics: Path) -> None:
        metrics.parent.mkdir(parents=True, exist_ok=True)
        self._metrics = metrics
        self._bar = tqdm(total=steps, initial=first_step, desc=title, unit="step", mininterval=5.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, **values: float | Tensor) -> None:
        """One step done. When the bar is drawn, which is every few seconds, the values are read from the device, and shown from
        the next time on."""
        if self._bar.update():
            self._bar.set_postfix({name: f"{float(value):.3f}" for name, value in values.items()}, refresh=False)

    def record(self, step: int, **values: float) -> None:
        """Append one evaluation to the metrics file and print it above the bar."""
        with self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self._bar.write(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
