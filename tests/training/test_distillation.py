"""Distillation: every objective brings few jumps nearer to the teacher's paths, a run resumes, and what it leaves is served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from service.cli import main
from service.models.dit_loading import load_dit
from service.models.flow_transformer import FlowTransformer, FlowTransformerConfig
from service.models.loading import load_model
from service.models.model_spec import EMBEDDED, ModelSpec
from service.models.quality import read_quality
from service.training.caption_tokenizer import build_caption_tokenizer
from service.training.cli_distill import _folder
from service.training.distillation_pair import NoiseAsVelocity, read_pair
from service.training.flow_objectives import OBJECTIVES
from service.training.scenes import draw_scenes
from service.training.shapes_sampling import ShapesModel
from service.training.train_distill import DistillationOptions, Distiller, distill
from service.training.train_shapes import ShapesTrainer, ShapesTrainingOptions
from tests.dit_checkpoints import small_dit, write_dit

TINY = {"depth": 2, "input_size": 4, "channels": 3, "classes": 4}


def sit_folder(tmp_path: Path, layout: str = "sit", **changes: object) -> Path:
    return write_dit(tmp_path / "teacher", small_dit(layout, **{**TINY, **changes}))


def shapes_folder(tmp_path: Path) -> Path:
    """A small network of the embedded model's kind with random numbers where training begins with zeros."""
    trainer = ShapesTrainer(ShapesTrainingOptions(out=tmp_path, width=64, depth=1, heads=2))
    with torch.no_grad():
        trainer.average.weights["head.weight"].normal_(std=0.02, generator=torch.Generator().manual_seed(3))
    trainer.export(tmp_path / "teacher")
    return tmp_path / "teacher"


def options(teacher: Path, out: Path, **changes: object) -> DistillationOptions:
    values: dict[str, object] = {
        "steps": 6, "rows": 16, "paths": 32, "held_out_paths": 16, "evaluate_every": 1000, "guidance": (1.0, 3.0),
    }  # fmt: skip
    return DistillationOptions(teacher, out, **{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_short_run_brings_few_jumps_nearer_to_the_paths(tmp_path: Path, objective: str) -> None:
    changes = {"objective": objective, "steps": 40, "rows": 24, "guidance": (1.0, 1.0), "average_decay": 0.9}
    teacher = sit_folder(tmp_path, depth=1)
    distiller = Distiller(options(teacher, tmp_path / "student", matrix_rate=4e-3, other_rate=2e-3, **changes))
    before = distiller.validate()
    assert before["velocity_error"] < 1e-9, "the student begins as its teacher"
    while distiller.step < 40:
        distiller.train_step()
    after = distiller.validate()
    assert after["error1"] < 0.5 * before["error1"] and after["error2"] < 0.7 * before["error2"], (before, after)
    assert after["velocity_error"] < 0.06


def test_a_short_run_learns_to_be_told_the_guidance(tmp_path: Path) -> None:
    changes = {"steps": 60, "rows": 24, "guidance": (1.0, 4.0), "matrix_rate": 1e-2, "other_rate": 5e-3, "average_decay": 0.9}
    distiller = Distiller(options(sit_folder(tmp_path, depth=1), tmp_path / "student", **changes))
    before = distiller.validate()
    while distiller.step < 60:
        distiller.train_step()
    after = distiller.validate()
    assert all(after[f"error{count}"] < 0.7 * before[f"error{count}"] for count in (1, 2, 4)), (before, after)


def test_the_condition_that_says_nothing_is_learnt_where_conditions_are_dropped(tmp_path: Path) -> None:
    wanted = options(shapes_folder(tmp_path), tmp_path / "student", condition_dropout=1.0)
    distiller = Distiller(wanted)
    distiller.bank.advance(wanted.paths)
    asked: list[torch.Tensor] = []
    distiller.student.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[4]))
    distiller._velocity_residual(8, torch.Generator().manual_seed(0))
    empty, (text,) = int(distiller.pair.empty), asked
    assert bool((text[:4, 0] == empty).all() and (text[:4, 1:] == 0).all()), "the guidance of the others is 1"
    assert not bool((text[4:, 1] == 0).any())


def test_differences_stand_in_for_forward_mode(tmp_path: Path) -> None:
    teacher, losses = sit_folder(tmp_path), []
    for difference in (None, 1e-3):
        distiller = Distiller(options(teacher, tmp_path / "student", objective="meanflow", difference=difference))
        losses.append([distiller.train_step()["jumps"] for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    teacher = sit_folder(tmp_path)
    whole = distill(options(teacher, tmp_path / "whole"))
    distill(options(teacher, tmp_path / "halves", stop_after=3))
    resumed = distill(options(teacher, tmp_path / "halves", resume=True))
    assert resumed.step == whole.step == 6
    for name, weight in whole.average.weights.items():
        assert torch.equal(weight, resumed.average.weights[name]), name
    assert [json.loads(line)["step"] for line in (tmp_path / "halves/training/metrics.jsonl").open()] == [6]
    with pytest.raises(ValueError, match=r"cannot resume .*: other values of rows"):
        distill(options(teacher, tmp_path / "halves", resume=True, rows=8))
    with pytest.raises(FileExistsError, match="--resume"):
        distill(options(teacher, tmp_path / "halves"))


@torch.no_grad()
@pytest.mark.parametrize("layout", ["sit", "meanflow", "dit"])
def test_a_student_of_a_dit_is_a_two_time_checkpoint_with_its_velocity(tmp_path: Path, layout: str) -> None:
    distiller = Distiller(options(sit_folder(tmp_path, layout), tmp_path / "student"))
    distiller.write({})
    config = distiller.student.network.config
    assert config.layout == "meanflow" and config.guidance_input and config.guidance_range == (1.0, 3.0)
    read = load_dit("student", tmp_path / "student", config, torch.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    x, t, s = torch.randn(3, 3, 4, 4, generator=generator), torch.tensor([1.0, 0.6, 0.2]), torch.tensor([0.0, 0.5, 0.2])
    w, labels = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[0], [3], [4]])
    found = distiller.student(x, t, s, w, labels)
    turned = (x, 1 - t, 1 - s, w, labels[:, 0]) if layout == "sit" else (x, t, s, w, labels[:, 0])
    sign = -1 if layout == "sit" else 1
    torch.testing.assert_close(found, sign * read(*turned))
    if layout == "dit":
        assert not found.any(), "the last layer of a noise prediction begins anew"
    elif layout == "sit":
        torch.testing.assert_close(found, distiller.pair.teacher(x, t, t, w, labels))


@torch.no_grad()
def test_a_noise_prediction_is_the_velocity_between_the_same_data_and_noise() -> None:
    """A network that knows the noise of N(0, 1) data, eps = sigma x at unit variance, gives that flow's velocity."""
    network = NoiseAsVelocity(small_dit("dit", **TINY))
    log_ratios = network.log_ratios

    class Gaussian(torch.nn.Module):
        def forward(self, x: torch.Tensor, step: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            below, part = step.floor().long(), step - step.floor()
            log_ratio = torch.lerp(log_ratios[below], log_ratios[(below + 1).clamp_max(999)], part)
            return x * (1 + torch.exp(2 * log_ratio)).rsqrt().view(-1, 1, 1, 1)

    network.network = Gaussian()  # type: ignore[assignment]
    t = torch.tensor([0.05, 0.3, 0.5, 0.9, 0.99])
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    growth = (t - (1 - t)) / (t.square() + (1 - t).square())
    found = network(x, t, t, torch.ones(5), torch.zeros(5, 1, dtype=torch.int64))
    torch.testing.assert_close(found, growth.view(-1, 1, 1, 1) * x, atol=1e-3, rtol=1e-3)


def test_what_cannot_be_distilled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can only be distilled at 1 to 1"):
        read_pair(sit_folder(tmp_path, null_class=False), (1.0, 3.0))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="'llama' cannot be distilled"):
        read_pair(tmp_path / "other", None)
    with pytest.raises(ValueError, match="only_correct: nothing can say"):
        Distiller(options(tmp_path / "teacher", tmp_path / "student", guidance=(1.0, 1.0), only_correct=True))
    command = f"train distill --teacher {tmp_path / 'teacher'} --student {tmp_path / 'student'} --captions 4"
    with pytest.raises(SystemExit, match="--captions: nothing can say which pictures"):
        main(command.split())
    with pytest.raises(ValueError, match="the student's folder is the teacher's"):
        options(tmp_path / "teacher", tmp_path / "teacher")
    with pytest.raises(ValueError, match="paths must be a multiple of 16, not 17"):
        options(tmp_path, tmp_path, paths=17)


def test_the_command_leaves_a_model_that_is_served_with_its_measurements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, out = shapes_folder(tmp_path), tmp_path / "student"
    command = f"train distill --teacher {teacher} --student {out} --objective self_consistency --steps 2 --rows 8 --paths 16"
    assert main([*command.split(), "--held-out-paths", "16", "--captions", "2", "--guidance", "1", "2"]) == 0
    printed = capsys.readouterr().out
    assert "| 4 | " in printed and '"procedure": "flow_map"' in printed
    table = read_quality(out)
    assert table is not None and {row.choice[0] for row in table.rows} == {"flow_map", "consistency", "euler", "dpmpp_2m", "heun"}
    assert [row.nfe for row in table.rows if row.choice[0] == "euler"] == [8, 16, 32, 100]
    assert {row.procedure["guidance"] for row in table.rows} == {2.0}, "which the student knows, and 3 it does not"
    model = load_model(ModelSpec.parse(f"student={out}"), torch.device("cpu"))
    assert isinstance(model.network, FlowTransformer)
    mine = ShapesModel.load(out).network
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), model.network.float().parameters(), strict=True))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--teacher nowhere --student out", "nowhere is not a folder with a config.json"),
        ("--teacher shapes --student out --rows 1", "leaves nothing to learn"),
        ("--teacher shapes --student out --resume", "no training state"),
        ("--teacher shakespeare --student out", "cannot be distilled to a flow map"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        main(["train", "distill", *words.split()])
    assert says in f"{refused.value.code}{capsys.readouterr().err}"


def test_a_folder_with_the_name_of_an_embedded_model_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes_folder(tmp_path).rename(tmp_path / "shapes")
    monkeypatch.chdir(tmp_path)
    assert _folder("shapes") == EMBEDDED / "shapes"
    for own in ("./shapes", "shapes/", str(tmp_path / "shapes")):
        assert _folder(own).resolve() == tmp_path / "shapes"


def test_the_pictures_of_a_seeds_own_scenes_are_right(tmp_path: Path) -> None:
    pair = read_pair(shapes_folder(tmp_path), None)
    assert pair.right is not None
    assert pair.right((1, 2), draw_scenes((1, 2), 6).images) == [True] * 6
    assert pair.right((1, 2), draw_scenes((1, 3), 6).images) != [True] * 6


def test_captions_of_the_embedded_kind_are_drawn_with_their_empty_one(tmp_path: Path) -> None:
    pair = read_pair(shapes_folder(tmp_path), None)
    drawn = pair.conditions((1, 2), 4)
    null = build_caption_tokenizer().token_to_id("<null>")
    assert drawn.text.shape[0] == 4 and pair.empty.tolist() == [null] and drawn.empty[:, 0].tolist() == [null] * 4
    assert pair.guidance_range == FlowTransformerConfig(vocab_size=21).guidance_range
