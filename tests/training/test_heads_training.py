"""Training of heads: what each guess may see, that they learn and resume, and that what is written is what is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.cli import main
from service.models.decoder import Decoder, DecoderConfig
from service.models.heads import FeatureModule
from service.models.heads_loading import stored_heads
from service.training.heads_folder import KINDS, new_heads
from service.training.heads_objective import decoder_features, guesses
from service.training.text_sampling import DenseCache
from service.training.train_heads import HeadTrainer, HeadTrainingOptions, train_heads
from tests.checkpoints import write_decoder
from tests.few import few

TEXT = "".join(f"{i % 7} bottles stood on wall {i % 5}, and the {i % 3} cats sat below.\n" for i in range(400))


def options(tmp_path: Path, kind: str = "mtp", **changes: object) -> HeadTrainingOptions:
    (tmp_path / "text.txt").write_text(TEXT)
    if not (tmp_path / "model").exists():
        write_decoder(tmp_path / "model")
    values: dict[str, object] = {
        "model": tmp_path / "model", "text": tmp_path / "text.txt", "out": tmp_path / kind, "kind": kind, "steps": 60,
        "depths": 3, "rows": 8, "length": 96, "samples": 8, "evaluate_every": 1000, "evaluation_rows": 4,
    }  # fmt: skip
    return HeadTrainingOptions(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["mtp", "eagle"])
@torch.no_grad()
def test_what_is_unrolled_over_whole_rows_is_what_drafting_token_by_token_computes(kind: str) -> None:
    config = DecoderConfig(264, 32, 48, 2, 2, 1, 16, sliding_window=12)
    target, generator = Decoder(config).eval(), torch.Generator().manual_seed(0)
    target.initialise(generator)
    module = new_heads(kind, config, 3)
    assert isinstance(module, FeatureModule)
    module.initialise(target, generator)
    tokens, depths = torch.randint(256, (1, 30), generator=generator), 3
    features, _ = decoder_features(target, tokens)
    unrolled = guesses(module, target, tokens, features, depths)
    decoder = module.decoder(target)
    for begun in (0, 1, 7, 20):
        cache, at = DenseCache(decoder, 1), torch.arange(1, begun + 2)
        inputs = module.join(target.embed(tokens[0, 1 : begun + 2]), features[0, : begun + 1])
        states = decoder.states(inputs, at, cache)[-1:]
        for depth in range(1, depths + 1):
            logits = decoder.logits(states)[0]
            torch.testing.assert_close(unrolled[depth - 1][0, begun + depth], logits, atol=1e-5, rtol=1e-5)
            place = torch.tensor([begun + depth + 1])
            states = decoder.states(module.join(target.embed(tokens[0, place]), states), place, cache)


@pytest.mark.parametrize("kind", few(KINDS, "medusa"))
def test_heads_learn_what_the_model_will_say(tmp_path: Path, kind: str) -> None:
    trainer = HeadTrainer(options(tmp_path, kind))
    before = trainer.validate()["agreement_1"]
    trainer = train_heads(options(tmp_path, kind))
    after = trainer.validate()["agreement_1"]
    assert after > 1.1 * before
    scores = trainer.evaluate((0.0, 1.0))
    assert len(scores) == 2 and all(len(score.acceptance) == 3 and 1 <= score.tokens_per_forward <= 4 for score in scores)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_that_were_written_guess_as_those_in_memory(tmp_path: Path, kind: str) -> None:
    trainer = train_heads(options(tmp_path, kind, steps=3))
    target = trainer.target
    read = stored_heads(tmp_path / kind, target.config).load("heads", torch.float32, torch.device("cpu"))
    tokens = torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(0))
    features, _ = decoder_features(target, tokens)
    with torch.no_grad(), trainer.average.applied_to(trainer.heads):
        expected = guesses(trainer.heads, target, tokens, features, 3)
        found = guesses(read, target, tokens, features, 3)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 0.02 * other.abs().max(), "more than float16 rounds"


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = train_heads(options(tmp_path, steps=6))
    train_heads(options(tmp_path, steps=6, out=tmp_path / "halves", stop_after=3))
    resumed = train_heads(options(tmp_path, steps=6, out=tmp_path / "halves", resume=True))
    assert resumed.step == 6
    for name, weight in whole.average.weights.items():
        assert torch.equal(weight, resumed.average.weights[name]), name
    with pytest.raises(ValueError, match=r"cannot resume .*: other values of depths"):
        train_heads(options(tmp_path, steps=6, out=tmp_path / "halves", resume=True, depths=2))
    with pytest.raises(FileExistsError, match="--resume"):
        train_heads(options(tmp_path, steps=6, out=tmp_path / "halves"))


def test_heads_are_not_written_over_their_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which they would overwrite"):
        options(tmp_path, out=tmp_path / "model")


def test_a_text_that_is_too_short_to_validate_on_is_refused_before_anything_is_learnt(tmp_path: Path) -> None:
    wanted = options(tmp_path)
    wanted.text.write_text(TEXT[:500])
    with pytest.raises(ValueError, match="kept for validation has 50 tokens, a window needs 64"):
        HeadTrainer(wanted)
    assert not wanted.out.exists()


def test_the_command_trains_heads_and_prints_what_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = options(tmp_path)
    command = f"train heads --model {wanted.model} --text {wanted.text} --kind medusa --out {tmp_path / 'out'}"
    assert main([*command.split(), *["--steps", "2", "--depths", "2", "--samples", "4", "--length", "80", "--rows", "2"]]) == 0
    printed = capsys.readouterr().out
    assert "| temperature | tokens/forward | depth 1 | depth 2 |" in printed
    assert (tmp_path / "out" / "config.json").is_file() and (tmp_path / "out" / "model.safetensors").is_file()
