"""Progress of a training run: what a step gave is read when it is shown, not before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.training.progress import TrainingProgress


class Waiting:
    """A number whose reading waits for a device."""

    read = 0

    def __float__(self) -> float:
        Waiting.read += 1
        return 0.5


def test_values_are_read_only_when_the_bar_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress("run", 200, 0, tmp_path / "metrics.jsonl") as progress:
        for _ in range(100):
            progress.advance(loss=Waiting())  # type: ignore[arg-type]
        assert Waiting.read <= 2
        progress._bar.mininterval, progress._bar.miniters, progress._bar.dynamic_miniters = 0.0, 1, False
        for _ in range(3):
            progress.advance(loss=Waiting())  # type: ignore[arg-type]
        assert Waiting.read >= 3
        progress.record(103, loss=0.25)
    assert "loss=0.500" in capsys.readouterr().err
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 103, "loss": 0.25}
