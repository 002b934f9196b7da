"""Training of `shapes`: the loss falls, a resumed run is the same run, and the model that it leaves samples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service.cli import main
from service.training.caption_tokenizer import MAX_TEXT_TOKENS, build_caption_tokenizer, encode_captions
from service.training.captured import CapturedErrors
from service.training.checkpointing import load_training_state
from service.training.drawing import draw_training_batch
from service.training.evaluate_shapes import sampler_table
from service.training.precision import training_precision
from service.training.shapes_objective import ScenePaths, exact_velocity, squared_errors, velocity_targets
from service.training.shapes_sampling import ShapesModel
from service.training.train_distill import DistillationOptions
from service.training.train_shapes import ShapesTrainer, ShapesTrainingOptions, train_shapes
from tests.calling_again import CalledAgain


def options(out: Path, **changes: object) -> ShapesTrainingOptions:
    small = {"steps": 4, "flow_map_steps": 4, "batch_size": 8, "evaluate_captions": 2, "paths": 32, "paths_a_step": 8}
    small |= {"width": 64, "depth": 2, "heads": 2, "own_paths": 32}
    return ShapesTrainingOptions(out=out, **(small | changes))  # type: ignore[arg-type]


def test_the_velocity_loss_falls(tmp_path: Path) -> None:
    trainer = ShapesTrainer(options(tmp_path, steps=60, batch_size=16))
    losses = [trainer.train_step()["velocity"] for _ in range(40)]
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])


def test_the_exact_velocity_has_no_loss() -> None:
    batch = draw_training_batch(build_caption_tokenizer(), (1, 2), 8)

    class Exact(nn.Module):
        def forward(self, x: Tensor, t: Tensor, *rest: Tensor) -> Tensor:
            return exact_velocity(x, t, batch.scenes)

    def loss(dropout: float) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return squared_errors(Exact(), velocity_targets(batch, dropout=dropout, noise_bias=1.6, generator=generator))

    assert loss(0.0).max() == 0.0
    assert loss(1.0).min() > 0.0


def test_guidance_acts_where_it_is_open_what_stands_where_and_not_below() -> None:
    batch = draw_training_batch(build_caption_tokenizer(), (1, 2), 4)

    class Blank(nn.Module):
        def forward(self, x: Tensor, t: Tensor, *rest: Tensor) -> Tensor:
            return torch.zeros_like(x)

    x, t, guidance = torch.randn(4, 3, 32, 32), torch.tensor([1.0, 0.7, 0.69, 0.1]), torch.tensor([4.0, 1.0, 4.0, 2.0])
    exact = exact_velocity(x, t, batch.scenes)
    torch.testing.assert_close(ScenePaths(Blank())(x, t, guidance, batch), exact * torch.tensor([4, 1, 1, 1]).view(-1, 1, 1, 1))
    assert torch.equal(ScenePaths(Blank())(x, t / 2, guidance, batch), exact_velocity(x, t / 2, batch.scenes))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The states of one run, before its first step and behind each of eight."""
    trainer = ShapesTrainer(options(tmp_path_factory.mktemp("straight")))
    states = [copy.deepcopy(trainer.state_dict())]
    for _ in range(8):
        trainer.train_step()
        states.append(copy.deepcopy(trainer.state_dict()))
    return states


@pytest.mark.parametrize("stop_after", [2, 4, 6])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, straight: list[dict[str, Any]], stop_after: int) -> None:
    resumed = ShapesTrainer(options(tmp_path))
    resumed.load_state_dict(copy.deepcopy(straight[stop_after]))
    for _ in range(8 - stop_after):
        resumed.train_step()
    for name, value in straight[8]["average"]["weights"].items():
        torch.testing.assert_close(resumed.average.weights[name], value, atol=1e-6, rtol=1e-5)


def test_scenes_that_workers_draw_ahead_are_those_of_a_run_without_any(tmp_path: Path, straight: list[dict[str, Any]]) -> None:
    ahead = ShapesTrainer(options(tmp_path, workers=2))
    for _ in range(6):
        ahead.train_step()
    for name, value in straight[6]["network"].items():
        torch.testing.assert_close(ahead.network.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def test_passes_that_are_captured_and_replayed_learn_the_same(tmp_path: Path, straight: list[dict[str, Any]]) -> None:
    trainer, capture = ShapesTrainer(options(tmp_path)), CalledAgain()
    trainer.captured = CapturedErrors(trainer.network, MAX_TEXT_TOKENS, capture)
    for _ in range(8):
        trainer.train_step()
    assert (capture.captures, capture.replays) == (1, 8)
    for name, value in straight[8]["network"].items():
        torch.testing.assert_close(trainer.network.state_dict()[name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_gives_the_gradients_of_the_passes_that_it_captured(tmp_path: Path) -> None:
    trainer = ShapesTrainer(options(tmp_path, device="cuda"))
    network, captured, generator = trainer.network, trainer.captured, torch.Generator("cuda").manual_seed(0)
    assert captured is not None
    for seed in range(3):
        batch = draw_training_batch(trainer.tokenizer, (1, seed), 8).to(trainer.device)
        targets = velocity_targets(batch, dropout=0.1, noise_bias=1.6, generator=generator)
        errors = captured(targets).clone()
        replayed = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
        with training_precision(trainer.device):
            plain = squared_errors(network, targets)
        torch.testing.assert_close(errors, plain, rtol=1e-2, atol=1e-4)
        for gradient, found in zip(torch.autograd.grad(plain.mean(), network.parameters()), replayed, strict=True):
            assert (found - gradient).norm() <= 0.02 * gradient.norm() + 1e-6


def test_runs_on_another_kind_of_device_are_other_runs(tmp_path: Path) -> None:
    devices = "cpu", "cuda", "cuda:1"
    shapes = [options(tmp_path, device=device).identity() for device in devices]
    students = [DistillationOptions(tmp_path / "a", tmp_path / "b", device=device).identity() for device in devices]
    for here, there, other in (shapes, students):
        assert here != there == other


def test_paths_are_computed_as_many_at_a_time_as_asked(tmp_path: Path) -> None:
    trainer = ShapesTrainer(options(tmp_path, steps=1, paths_at_once=32, own_paths=64))
    for _ in range(3):
        trainer.train_step()
    assert trainer.bank is not None and (trainer.bank.end, trainer.own.end) == (32, 64)
    assert len(trainer.own.batches) == 2 and all((jumps.s == 0).sum() == 32 for jumps, _ in trainer.own.batches)
    assert len(trainer.bank.points[:, 0].unique(dim=0)) == 32
    with pytest.raises(ValueError, match="own_paths must be a multiple of paths_at_once, 32, not 48"):
        options(tmp_path, paths_at_once=32, own_paths=48)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_what_a_cpu_does(tmp_path: Path) -> None:
    """Of the same scenes, with noise of its own."""
    here, there = (ShapesTrainer(options(tmp_path, device=device, steps=60, batch_size=64)) for device in ("cpu", "cuda"))
    losses = [[trainer.train_step()["velocity"].item() for _ in range(40)] for trainer in (here, there)]
    assert sum(losses[1][:8]) == pytest.approx(sum(losses[0][:8]), rel=0.1)
    assert sum(losses[1][-8:]) == pytest.approx(sum(losses[0][-8:]), rel=0.25)
    assert sum(losses[1][-8:]) < 0.6 * sum(losses[1][:8])


@pytest.mark.parametrize("device", ["cuda:9", "abacus"])
def test_a_device_that_is_not_there_is_named(tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]) -> None:
    for task in (["shapes", "--out", str(tmp_path)], ["distill", "--teacher", "shapes", "--student", str(tmp_path)]):
        with pytest.raises(SystemExit) as refused:
            main(["train", *task, "--device", device])
        assert device in f"{refused.value.code}{capsys.readouterr().err}"


def test_a_run_can_begin_with_the_weights_of_a_model(tmp_path: Path) -> None:
    first = ShapesTrainer(options(tmp_path))
    first.train_step()
    first.export(tmp_path / "model")
    second = ShapesTrainer(options(tmp_path, start=tmp_path / "model", seed=9))
    for name, weight in second.network.named_parameters():
        torch.testing.assert_close(weight, first.average.weights[name].half().float())


def test_a_run_leaves_a_model_that_samples_by_every_kind_of_table(tmp_path: Path) -> None:
    train_shapes(options(tmp_path, steps=2, flow_map_steps=1))
    assert load_training_state(tmp_path / "training" / "state.pt")["step"] == 3
    model = ShapesModel.load(tmp_path)
    for procedure in ("flow_map", "consistency", "euler", "heun", "ddim", "dpmpp_2m"):
        pictures = model.sample(["a red circle", "a small blue square"], sampler_table(procedure, 2), 3.0, seed=0)
        assert pictures.shape == (2, 3, 32, 32) and torch.isfinite(pictures).all()
    with pytest.raises(FileExistsError, match="--resume"):
        train_shapes(options(tmp_path))
    with pytest.raises(ValueError, match=r"cannot resume .*: other values of batch_size, seed"):
        train_shapes(options(tmp_path, steps=2, flow_map_steps=1, batch_size=6, seed=3, resume=True))


def test_an_empty_caption_is_the_null_token_alone() -> None:
    tokenizer = build_caption_tokenizer()
    caption = "A large red circle to the left of a small blue square, on a grey background."
    ids = encode_captions(tokenizer, ["", caption])
    words = [tokenizer.id_to_token(int(token)) for token in ids[1]]
    assert words == ["<null>", "large", "red", "circle", "left", "small", "blue", "square", "gray"]
    assert tokenizer.encode("").ids == [tokenizer.token_to_id("<null>")]
