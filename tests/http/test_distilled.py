"""What distillation leaves behind is served as it lies there: by jumps, and by samplers of its velocity."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from service.training.train_distill import DistillationOptions, distill
from service.training.train_shapes import ShapesTrainer, ShapesTrainingOptions
from tests.dit_checkpoints import small_dit, write_dit
from tests.few import few
from tests.http.server import Server


def distilled(teacher: Path, out: Path) -> Path:
    distill(DistillationOptions(teacher, out, steps=1, rows=4, paths=16, held_out_paths=16, guidance=(1.0, 2.0)))
    return out


@pytest.mark.parametrize("name", few(["captions", "classes"], "captions"))
def test_a_student_answers_requests(tmp_path: Path, name: str) -> None:
    if name == "captions":
        ShapesTrainer(ShapesTrainingOptions(out=tmp_path, width=64, depth=1, heads=2)).export(tmp_path / name)
    else:
        write_dit(tmp_path / name, small_dit("sit", depth=1, channels=3))
    student = distilled(tmp_path / name, tmp_path / "student")
    server = Server(tmp_path / "log.txt", "--model", f"{name}={student}", ready_seconds=180)
    try:
        for procedure in ({"name": "flow_map", "steps": 2, "guidance": 2.0}, {"name": "euler", "steps": 2, "guidance": 2.0}):
            prompt = {"captions": "a red circle", "classes": "7"}[name]
            answer = server.post("/v1/generate", {"model": name, "prompt": prompt, "procedure": procedure})
            assert answer.status_code == 200, answer.text
            body = answer.json()
            picture = Image.open(io.BytesIO(base64.b64decode(body["outputs"][0]["image"])))
            assert picture.size == ((32, 32) if name == "captions" else (8, 8))
            guided_by_rows = procedure["name"] == "euler" and name == "captions"
            assert body["usage"]["nfe"] == (4 if guided_by_rows else 2)
    finally:
        server.stop()
