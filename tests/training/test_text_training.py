"""Text training: what each token may see, resuming, learning, the tokeniser and the sampling used for evaluation."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from service.cli import main
from service.models.decoder import Decoder, DecoderConfig
from service.models.model_spec import EMBEDDED
from service.training.block_diffusion_objective import DenseAttention, NoisedText, noise_text
from service.training.byte_tokenizer import CHAT_TEMPLATE, MASK_ID, byte_tokenizer
from service.training.evaluate_text import held_out_nats, token_nats
from service.training.text_model_folder import read_text_model
from service.training.text_sampling import DenseCache, draw, forward, sample_blocks, sample_causal
from service.training.train_text import SAMPLE_PROMPT, TextTrainer, TextTrainingOptions, train_text
from tests.checkpoints import write_decoder

LENGTH, WINDOW, BLOCKS = 128, 12, (4, 8, 16)


@pytest.fixture
def decoder() -> Decoder:
    config = DecoderConfig(264, 32, 48, 2, 2, 1, 16, sliding_window=WINDOW, mask_token_id=MASK_ID, block_lengths=BLOCKS)
    decoder = Decoder(config).eval()
    decoder.initialise(torch.Generator().manual_seed(0))
    return decoder


def batch() -> tuple[Tensor, NoisedText]:
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(256, (4, LENGTH), generator=generator)
    return clean, noise_text(clean, BLOCKS, MASK_ID, generator)


@torch.no_grad()
def outputs(decoder: Decoder, clean: Tensor, text: NoisedText, noised: Tensor) -> Tensor:
    """Final states [B, 2 L, d]."""
    attention = DenseAttention(len(clean), LENGTH, decoder.config.sliding_window, text)
    tokens = torch.cat((clean, noised), dim=1)
    positions = torch.arange(LENGTH).repeat(2 * len(clean))
    return decoder.hidden(tokens.reshape(-1), positions, attention).view(len(clean), 2 * LENGTH, -1)


def changed(before: Tensor, after: Tensor) -> Tensor:
    return (before - after).abs().amax(-1) > 1e-6


def test_a_clean_token_sees_neither_later_tokens_nor_the_noised_half(decoder: Decoder) -> None:
    clean, text = batch()
    before = outputs(decoder, clean, text, text.tokens)
    other = clean.clone()
    other[:, 100] = (other[:, 100] + 1) % 256
    difference = changed(before, outputs(decoder, other, text, text.tokens))[:, :LENGTH]
    assert not difference[:, :100].any() and difference[:, 100].all()
    noised = (text.tokens + 1) % 256
    assert not changed(before, outputs(decoder, clean, text, noised))[:, :LENGTH].any()


def test_a_noised_block_sees_earlier_clean_tokens_but_not_its_own_or_later_ones(decoder: Decoder) -> None:
    clean, text = batch()
    before = outputs(decoder, clean, text, text.tokens)
    for place in (5, 16, 24, 95, 110):
        other = clean.clone()
        other[:, place] = (other[:, place] + 1) % 256
        difference = changed(before, outputs(decoder, other, text, text.tokens))[:, LENGTH:]
        assert not difference[text.block_starts <= place].any()
        near = (text.block_starts > place) & (torch.arange(LENGTH) - place < WINDOW)
        assert difference[near].all()


def test_a_noised_block_sees_itself_in_both_directions_and_no_other_block(decoder: Decoder) -> None:
    clean, text = batch()
    before = outputs(decoder, clean, text, text.tokens)
    for place in (0, 9, 31, 100):
        noised = text.tokens.clone()
        noised[:, place] = (noised[:, place] + 1) % 256
        difference = changed(before, outputs(decoder, clean, text, noised))[:, LENGTH:]
        assert torch.equal(difference, text.block_starts == text.block_starts[:, place : place + 1])


def test_noise_masks_at_least_one_token_of_every_block_and_targets_are_the_clean_tokens() -> None:
    generator = torch.Generator().manual_seed(2)
    clean = torch.randint(256, (64, LENGTH), generator=generator)
    text = noise_text(clean, BLOCKS, MASK_ID, generator)
    masked = text.tokens == MASK_ID
    assert torch.equal(masked, text.targets != -100) and torch.equal(masked, text.weights > 0)
    assert torch.equal(torch.where(masked, text.targets, text.tokens), clean)
    whole = prefixes = blocks = 0
    for row in range(len(clean)):
        for start in text.block_starts[row].unique():
            block = text.block_starts[row] == start
            assert masked[row][block].any() and int(block.sum()) in BLOCKS
            order = torch.arange(int(masked[row][block].sum()))
            torch.testing.assert_close(text.weights[row][block & masked[row]], 0.9**order)
            blocks += 1
            whole += bool(masked[row][block].all())
            prefixes += bool((masked[row][block].long().diff() >= 0).all())
    # A block is a known prefix before masks in 60 % of cases by design, all masks in a quarter of these, or by chance.
    assert 0.6 < prefixes / blocks < 0.85 and 0.2 < whole / blocks < 0.4


def test_blocks_that_do_not_tile_the_row_are_refused() -> None:
    with pytest.raises(ValueError, match="row of 100 tokens"):
        noise_text(torch.zeros(1, 100, dtype=torch.int64), BLOCKS, MASK_ID, torch.Generator())


def options(folder: Path, **changes: object) -> TextTrainingOptions:
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog.\n" * 60)
    values = {
        "text": text,
        "out": folder / "model",
        "steps": 24,
        "hidden_size": 32,
        "intermediate_size": 48,
        "layers": 2,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 16,
        "window": 32,
        "length": 64,
        "rows": 4,
        "block_lengths": (4, 8),
        "dropout": 0.1,
        "evaluate_every": 8,
        "warmup_steps": 2,
        "ema_decay": 0.9,
    }
    return TextTrainingOptions(**{**values, **changes})  # type: ignore[arg-type]


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = train_text(options(tmp_path / "a"))
    train_text(options(tmp_path / "b", stop_after=11))
    resumed = train_text(options(tmp_path / "b", resume=True))
    assert resumed.step == whole.step == 24
    for name, weight in whole.decoder.state_dict().items():
        assert torch.equal(weight, resumed.decoder.state_dict()[name]), name
        assert torch.equal(whole.average.weights[name], resumed.average.weights[name]), name
    exported = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in "ab"]
    assert exported[0] == exported[1]


def test_sigterm_saves_a_state_that_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = TextTrainer.train_step

    def interrupted(trainer: TextTrainer) -> dict[str, float]:
        if trainer.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    monkeypatch.setattr(TextTrainer, "train_step", interrupted)
    assert train_text(options(tmp_path)).step == 5
    monkeypatch.undo()
    assert train_text(options(tmp_path, resume=True)).step == 24


def test_distilled_blocks_are_learnt_from_texts_of_the_teacher_and_resume(tmp_path: Path) -> None:
    for run in ("teacher", "whole", "parts"):
        (tmp_path / run).mkdir()
    train_text(options(tmp_path / "teacher"))
    teacher = tmp_path / "teacher" / "model"
    changes = {"teacher": teacher, "samples": 40, "sample_rows": 2, "steps": 6, "evaluate_every": 3}
    whole = train_text(options(tmp_path / "whole", **changes))
    train_text(options(tmp_path / "parts", **changes, stop_after=2))
    parts = train_text(options(tmp_path / "parts", **changes, resume=True))
    assert whole.samples is not None and parts.samples is not None
    assert whole.samples.shape == (40, SAMPLE_PROMPT + 64) and torch.equal(whole.samples, parts.samples)
    corpus = bytes(whole.corpus.training.tolist())
    for text in whole.samples:
        assert bytes(text[:SAMPLE_PROMPT].tolist()) in corpus and bytes(text.tolist()) not in corpus
    start = read_text_model(teacher)[0].state_dict()
    for name, weight in whole.decoder.state_dict().items():
        assert torch.equal(weight, parts.decoder.state_dict()[name]), name
        assert 0 < (weight - start[name]).abs().max() < 0.1, name


def test_resuming_with_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    train_text(options(tmp_path, stop_after=1))
    with pytest.raises(ValueError, match="rows"):
        train_text(options(tmp_path, resume=True, rows=5))
    with pytest.raises(FileExistsError, match="--resume"):
        train_text(options(tmp_path))
    with pytest.raises(ValueError, match="evaluate_every must be at least 1"):
        train_text(options(tmp_path, resume=True, evaluate_every=0))


def test_a_text_that_is_too_short_to_validate_on_is_refused_before_anything_is_learnt(tmp_path: Path) -> None:
    wanted = options(tmp_path)
    wanted.text.write_text("the quick brown fox jumps over the lazy dog.\n" * 12)
    with pytest.raises(ValueError, match="kept for validation has 54 tokens, a window needs 65"):
        TextTrainer(wanted)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("judge --text nowhere.txt --out out", "judge: .*nowhere.txt"),
        ("judge --text text.txt --out out --resume", "judge: no training state"),
        ("evaluate-text --model nowhere --text text.txt", "evaluate-text: .*nowhere"),
        ("evaluate-shapes --model model", "evaluate-shapes: model_type must be"),
        ("shapes --out out --paths 0", "shapes: paths must be a multiple"),
        ("shapes --out out --evaluate-captions 0", "shapes: evaluate_captions must be"),
        ("shapes --out out --start " + str(EMBEDDED / "shapes"), "shapes: .* is a model of another shape: its .*patch_size"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, says: str) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * 200)
    write_decoder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^stride train {says}"):
        main(["train", *words.split()])


def test_at_temperature_0_the_likeliest_token_is_drawn() -> None:
    logits = torch.randn(3, 2, 9, generator=torch.Generator().manual_seed(0))
    tokens, probabilities = draw(logits, 0.0, torch.Generator(), 8)
    assert torch.equal(tokens, logits[..., :8].argmax(-1))
    torch.testing.assert_close(probabilities, logits[..., :8].softmax(-1).amax(-1))


def test_training_lowers_both_losses_and_exports_a_readable_model(tmp_path: Path) -> None:
    train_text(options(tmp_path, steps=160, evaluate_every=20))
    lines = (tmp_path / "model" / "training" / "metrics.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert last["validation_causal"] < 0.7 * first["validation_causal"]
    assert last["validation_masked"] < first["validation_masked"]
    decoder, tokenizer = read_text_model(tmp_path / "model")
    tokens = torch.tensor(tokenizer.encode("the quick brown fox").ids)[None]
    assert token_nats(decoder, tokens).mean() < 3.0


def test_every_string_survives_the_tokeniser_and_bytes_are_token_ids() -> None:
    tokenizer = byte_tokenizer()
    text = "O Romeo, \t\r\n ¿naïve? 日本 🎭 \x00  two  spaces "
    ids = tokenizer.encode(text).ids
    assert ids == list(text.encode()) and tokenizer.decode(ids) == text
    assert tokenizer.encode("<|endoftext|><|mask|>").ids == [256, 257]


def test_the_chat_template_writes_a_dialogue_that_opens_the_answer() -> None:
    jinja2 = pytest.importorskip("jinja2")
    messages = [{"role": "system", "content": "Rome. A street."}, {"role": "user", "content": "Who goes there?"}]
    text = jinja2.Template(CHAT_TEMPLATE).render(messages=messages, add_generation_prompt=True)
    assert text == "[Rome. A street.]\n\nFirst Citizen:\nWho goes there?\n\nSecond Citizen:\n"


@torch.no_grad()
def test_cached_forwards_equal_the_training_forward_on_both_axes(decoder: Decoder) -> None:
    clean, text = batch()
    whole = outputs(decoder, clean, text, text.tokens)
    row = 1
    start = int(text.block_starts[row].unique()[1])
    block = text.block_starts[row] == start
    cache = DenseCache(decoder, 1)
    forward(decoder, cache, clean[row : row + 1, :7])
    prefix = forward(decoder, cache, clean[row : row + 1, 7:start])
    canvas = forward(decoder, cache, text.tokens[row][block][None], block=True, keep=False)
    torch.testing.assert_close(prefix[0], decoder.logits(whole[row, 7:start]))
    torch.testing.assert_close(canvas[0], decoder.logits(whole[row, LENGTH:][block]))


def test_held_out_likelihood_in_windows_equals_one_long_forward_of_a_one_layer_model() -> None:
    config = DecoderConfig(264, 32, 48, 1, 2, 2, 16, sliding_window=16)
    decoder = Decoder(config).eval()
    decoder.initialise(torch.Generator().manual_seed(0))
    tokens = torch.randint(256, (101,), generator=torch.Generator().manual_seed(1))
    assert held_out_nats(decoder, tokens, 16) == pytest.approx(float(token_nats(decoder, tokens[None]).mean()), abs=1e-5)


def test_block_sampling_counts_its_forwards_and_leaves_no_mask(decoder: Decoder) -> None:
    prompts = torch.randint(256, (3, 10), generator=torch.Generator().manual_seed(1))

    def sample(threshold: float) -> tuple[Tensor, float, float]:
        samples = sample_blocks(decoder, prompts, 20, 8, threshold, 1.0, torch.Generator().manual_seed(4))
        return samples.tokens, samples.forwards, samples.shared_forwards

    tokens, forwards, shared = sample(1.0)
    assert tokens.shape == (3, 20) and tokens.max() < 256
    assert (forwards, shared) == (20 + 3, 20)
    assert sample(0.0)[1:] == (3 + 3, 3)
    assert sample_causal(decoder, prompts, 20, 1.0, torch.Generator().manual_seed(4)).tokens.shape == (3, 20)
