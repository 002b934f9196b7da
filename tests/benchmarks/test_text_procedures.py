"""The table of text procedures runs, and what it says of exactness is so."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from service.models.loading import EMBEDDED
from tests.benchmarks import text_procedures


@pytest.mark.slow
def test_a_table_of_plain_verified_and_refined_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    (tmp_path / "text.txt").write_text("\n".join("".join(rng.choices("to be or not", k=40)) for _ in range(200)))
    arguments = [
        "--judge", str(EMBEDDED / "shakespeare"), "--text", str(tmp_path / "text.txt"), "--samples", "3", "--length", "24",
        "--temperature", "0.8", "--turns", "1", "--threads", "1",
        "--only", "heads, 4, width 2", "threshold 0.5", "4 at once, blocks of 4",
        "--json", str(tmp_path / "scores.json"), "--picture", str(tmp_path / "scores.png"),
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["text_procedures", *arguments])
    text_procedures.main()
    scores = {score["case"]["name"]: score for score in json.loads((tmp_path / "scores.json").read_text())}
    assert list(scores) == ["next token", "verified, heads, 4, width 2", "4 at once, blocks of 4", "threshold 0.5"]
    plain, verified, independent, threshold = scores.values()
    assert verified["same"] == 1.0 and verified["nats"] == plain["nats"] and verified["forwards"] < plain["forwards"] / 2
    assert verified["depths"][0] > 0.3
    assert independent["forwards"] == plain["forwards"] / 4 and threshold["same"] < 1.0
    assert independent["nats"] > plain["nats"], "tokens that are drawn independently do not fit together"
    assert all(score["alone"] and score["streams"] for score in scores.values())
    assert (tmp_path / "scores.png").stat().st_size > 10_000
    assert "| verified, heads, 4, width 2 | 0.8 |" in capsys.readouterr().out
