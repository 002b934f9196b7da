"""Training of `shapes`: the loss falls, a resumed run is the same run, and the model that it leaves samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from service.training.caption_tokenizer import build_caption_tokenizer, encode_captions
from service.training.checkpointing import load_training_state
from service.training.evaluate_shapes import sampler_table
from service.training.shapes_objective import exact_velocity, velocity_loss
from service.training.shapes_sampling import ShapesModel
from service.training.train_shapes import ShapesTrainer, ShapesTrainingOptions, draw_training_batch, train_shapes


def options(out: Path, **changes: object) -> ShapesTrainingOptions:
    small = {"steps": 4, "flow_map_steps": 4, "batch_size": 8, "evaluate_captions": 2, "paths": 32, "paths_a_step": 8}
    small |= {"width": 64, "depth": 2, "heads": 2}
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
        return velocity_loss(Exact(), batch, dropout=dropout, noise_bias=1.6, generator=generator)

    assert loss(0.0).max() == 0.0
    assert loss(1.0).min() > 0.0


@pytest.mark.parametrize("stop_after", [2, 4, 6])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, stop_after: int) -> None:
    straight, stopped = (ShapesTrainer(options(tmp_path)) for _ in range(2))
    for _ in range(8):
        straight.train_step()
    for _ in range(stop_after):
        stopped.train_step()
    resumed = ShapesTrainer(options(tmp_path))
    resumed.load_state_dict(stopped.state_dict())
    for _ in range(8 - stop_after):
        resumed.train_step()
    for name, value in straight.average.weights.items():
        torch.testing.assert_close(resumed.average.weights[name], value, atol=1e-6, rtol=1e-5)


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


def test_an_empty_caption_is_the_null_token_alone() -> None:
    tokenizer = build_caption_tokenizer()
    caption = "A large red circle to the left of a small blue square, on a grey background."
    ids = encode_captions(tokenizer, ["", caption])
    words = [tokenizer.id_to_token(int(token)) for token in ids[1]]
    assert words == ["<null>", "large", "red", "circle", "left", "small", "blue", "square", "gray"]
    assert tokenizer.encode("").ids == [tokenizer.token_to_id("<null>")]
