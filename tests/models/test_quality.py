"""Quality tables: what is measured is read back, what cannot be true is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.models.errors import ModelError
from service.models.model_spec import EMBEDDED
from service.models.quality import QUALITY_FILE, quality_json, read_quality

ROW: dict[str, Any] = {
    "procedure": {"name": "flow_map", "steps": 4, "guidance": 2.0}, "nfe": 4, "frechet": 0.8, "correct": 0.636,
    "samples": 1000, "date": "2026-11-24",
}  # fmt: skip
EULER = ROW | {"procedure": {"name": "euler", "steps": 1}, "nfe": 2}


def write(folder: Path, *rows: dict[str, Any]) -> None:
    (folder / QUALITY_FILE).write_text(json.dumps({"features": "some", "rows": rows}))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    (tmp_path / QUALITY_FILE).write_bytes(quality_json("of a classifier", [ROW, EULER]))
    table = read_quality(tmp_path)
    assert table is not None and table.features == "of a classifier"
    assert [row.choice for row in table.rows] == [("flow_map", {"steps": 4, "guidance": 2.0}), ("euler", {"steps": 1})]
    assert table.rows[0].correct == 0.636 and table.rows[0].date.isoformat() == "2026-11-24"
    assert [row.nfe for row in table.runnable(["flow_map", "euler"])] == [2, 4]
    assert [row.nfe for row in table.runnable(["flow_map"])] == [4]


def test_a_model_without_a_table_has_none(tmp_path: Path) -> None:
    assert read_quality(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"procedure": {"name": "magic"}}, r"'magic' is not known.*euler.*\$\.rows\[1\]"),
        ({"procedure": {"steps": 4}}, r"procedure '' is not known"),
        ({"procedure": {"name": "flow_map", "jumps": 4}}, r"unknown field `jumps`"),
        ({"procedure": {"name": "flow_map", "steps": 0}}, r"`int` >= 1"),
        ({"nfe": 0}, r"nfe must be at least 1, not 0"),
        ({"samples": -5}, r"samples must be at least 1"),
        ({"frechet": -0.1}, r"frechet must not be negative"),
        ({"correct": 63.6}, r"correct must be a share between 0 and 1, not 63.6"),
        ({"correct": None, "frechet": None}, r"nothing was measured"),
        ({"date": "yesterday"}, r"date.*\$\.rows\[1\]\.date"),
        ({"speed": 3}, r"unknown field `speed`"),
        (ROW, r"is there twice"),
    ],
)
def test_nonsense_is_refused_with_its_place(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    write(tmp_path, ROW, EULER | change)
    with pytest.raises(ModelError, match=f"(?s){QUALITY_FILE}.*{says}"):
        read_quality(tmp_path)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / QUALITY_FILE).write_text("{")
    with pytest.raises(ModelError, match=QUALITY_FILE):
        read_quality(tmp_path)


def test_the_embedded_model_has_a_table_of_what_it_can_run() -> None:
    table = read_quality(EMBEDDED / "shapes")
    assert table is not None
    jumps = [row for row in table.runnable(["flow_map"]) if row.choice[1]["guidance"] == 4.0]
    assert [row.nfe for row in jumps][:4] == [1, 2, 4, 8]
    assert len({row.samples for row in table.rows}) == 1
