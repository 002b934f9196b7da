"""The benchmark of pictures runs, in miniature, and what it compares is the same work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import pictures
from tests.benchmarks.picture_jobs import PictureJob, figures, picture_jobs
from tests.benchmarks.picture_peers import Queue

PICTURE = np.zeros((1, 1, 3), np.uint8)


@dataclass
class Clock:
    """Time passes by sleeping and drawing alone."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def job(arrives: float, steps: int) -> PictureJob:
    return PictureJob(arrives, "a", "", 0, "ddim", steps, 1.0)


@pytest.mark.parametrize(
    ("batch", "patience", "together", "finished"),
    [
        # One by one, each a second a step.
        (1, 0.0, [1, 1, 1, 1], [2.0, 5.0, 7.0, 9.0]),
        # The first waits half a second for nobody; when it is done, the odd one waits longest.
        (2, 0.5, [1, 1, 2, 2], [2.5, 5.5, 7.5, 7.5]),
        # Patience lets two others like it arrive, and more do not fit.
        (3, 2.0, [3, 1, 3, 3], [3.5, 6.5, 3.5, 3.5]),
    ],
)
def test_alike_requests_wait_for_one_another_and_are_drawn_together(
    batch: int, patience: float, together: list[int], finished: list[float]
) -> None:
    clock = Clock()

    def draw(jobs: Sequence[PictureJob]) -> list[np.ndarray]:
        clock.sleep(float(jobs[0].steps))
        return [PICTURE] * len(jobs)

    jobs = [job(0.0, 2), job(1.0, 3), job(1.25, 2), job(1.5, 2)]
    drawn = Queue(batch, patience, clock, clock.sleep).serve(jobs, draw)
    assert [one.together for one in drawn] == together
    assert [one.finished for one in drawn] == pytest.approx(finished)


def test_requests_come_faster_under_load_and_are_otherwise_the_same() -> None:
    slow, fast = picture_jobs(200, 1.0, seed=3), picture_jobs(200, 4.0, seed=3)
    assert [each.arrives for each in slow] == pytest.approx([4 * each.arrives for each in fast])
    assert slow[-1].arrives == pytest.approx(200, rel=0.2)
    assert [(each.prompt, each.alike, each.seed) for each in slow] == [(each.prompt, each.alike, each.seed) for each in fast]
    assert len({each.prompt for each in slow}) == len({each.seed for each in slow}) == 200
    assert {each.rows // each.steps for each in slow} == {1, 2}


def test_figures_are_of_seconds_from_arrival() -> None:
    jobs = [job(1.0, 1), job(2.0, 1), job(7.0, 1)]
    got = figures(jobs, [4.0, 6.0, 8.0])
    assert (got.images_per_second, got.mean) == (3 / 7, 8 / 3)
    assert got.p99 == pytest.approx(3.98)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_contestants_draw_the_same_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "figures.json", tmp_path / "plot.png"
    arguments = ["--networks", "tiny", "--count", "6", "--loads", "1", "--threads", "1", "--batch", "2", "--patience", "0.02"]
    monkeypatch.setattr("sys.argv", ["pictures", *arguments, "--json", str(out), "--picture", str(plot)])
    pictures.main()
    (result,) = json.loads(out.read_text())
    assert list(result["runs"]) == ["0.0", "1.0"]
    for by in result["runs"].values():
        assert list(by) == [pictures.FIRST_COME, pictures.BATCHES, pictures.STRIDE]
        assert all(each["images_per_second"] > 0 and 0 < each["mean"] <= each["p99"] for each in by.values())
    at_once = result["runs"]["0.0"]
    assert at_once[pictures.FIRST_COME]["together"] == 1 < at_once[pictures.BATCHES]["together"] <= 2
    assert at_once[pictures.STRIDE]["together"] > 1
    # Rounding, from the first noise on, of a network whose weights are random.
    assert result["difference"] < 0.5
    assert plot.stat().st_size > 10_000
    assert "| tiny | load 1 | Stride over HTTP |" in capsys.readouterr().out
