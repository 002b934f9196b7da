"""DiffusionGemma computes what transformers computes for the same folder, text and canvas, through the path that serves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.models.families import read_config
from service.models.loading import ModelSpec, TextModel, load_model
from service.procedures.types import Axis, TokenRow
from service.workers.block_pool import BlockPool
from service.workers.conditioning import Conditioning
from service.workers.types import Draws, RowError, TokenMove, TokenRead
from tests.diffusion_gemma import CANVAS, TEXT, VOCABULARY, write_gemma
from tests.models.test_families import RecordingWorker, causal, run

pytest.importorskip("transformers")

PROMPT = torch.randint(3, VOCABULARY, (40,), generator=torch.Generator().manual_seed(7)).tolist()
NOISE = torch.randint(3, VOCABULARY, (CANVAS,), generator=torch.Generator().manual_seed(8)).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diffusion-gemma")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return write_gemma(folder)


def served(folder: Path, **options: Any) -> RecordingWorker:
    model = load_model(ModelSpec.parse(f"m={folder}"), torch.device("cpu"))
    assert isinstance(model, TextModel)
    return RecordingWorker(model, BlockPool(64, 4), **options)


def canvas(tokens: list[int], start: int, draw: int = 0) -> TokenRow:
    return TokenRow(Axis.REFINE, tuple(tokens), start, "block", False, tuple(range(len(tokens))), draw, spread=True)


def logits_in(worker: RecordingWorker, carried: object | None, *chunks: int) -> tuple[Tensor, TokenRead]:
    """Of the canvas [8, V] behind PROMPT; the last chunk is computed in the forward of the canvas."""
    blocks, start = worker.pool.allocate(12), 0
    for size in chunks[:-1]:
        run(worker, [causal(PROMPT[start : start + size], start)], [blocks])
        start += size
    rows = (causal(PROMPT[start:], start), canvas(NOISE, 40))
    (outcome,) = worker.run([TokenMove(rows, blocks, Draws(0, 0.0), carried=carried)])
    assert not isinstance(outcome, RowError)
    worker.pool.release(blocks)
    return worker.recorded[-1], outcome


def test_text_has_the_logits_of_the_encoder_and_a_canvas_those_of_the_decoder(folder: Path, reference: Any) -> None:
    worker = served(folder)
    assert worker.run_by == "torch" and worker.config.block_lengths == (CANVAS,)
    prompt, noise = torch.tensor([PROMPT]), torch.tensor([NOISE])
    with torch.no_grad():
        states = reference.model.encoder(input_ids=prompt).last_hidden_state
        expected = torch.tanh(reference.lm_head(states) / 30.0)[0] * 30.0
        first = reference(input_ids=prompt, decoder_input_ids=noise).logits
        second = reference(input_ids=prompt, decoder_input_ids=noise, self_conditioning_logits=2.0 * first).logits[0]
    assert first.std() > 0.1 and (first[0] - second).abs().max() > 0.1, "a test with flat logits shows nothing"
    blocks = worker.pool.allocate(10)
    run(worker, [causal(PROMPT, 0, every=True)], [blocks])
    torch.testing.assert_close(worker.recorded[-1], expected, atol=1e-4, rtol=1e-4)
    mixed = Conditioning(worker._forward._network).carried(first[0], torch.full((CANVAS,), 0.5))  # type: ignore[attr-defined]
    for chunks in [(40,), (23, 17), (32, 7, 1)]:
        got, read = logits_in(worker, None, *chunks)
        torch.testing.assert_close(got, first[0], atol=1e-4, rtol=1e-4)
        assert [reading.likeliest for reading in read.readings] == first[0].argmax(-1).tolist()
        assert isinstance(read.carried, Tensor) and read.carried.shape == (CANVAS, TEXT["hidden_size"])
        torch.testing.assert_close(logits_in(worker, mixed, *chunks)[0], second, atol=1e-4, rtol=1e-4)


def test_a_batch_invariant_worker_gives_a_canvas_the_same_bits_for_any_chunks(folder: Path, reference: Any) -> None:
    worker = served(folder, batch_invariant=True)
    whole, read = logits_in(worker, None, 40)
    assert torch.equal(logits_in(worker, None, 7, 20, 13)[0], whole)
    again = logits_in(worker, read.carried, 40)[0]
    assert torch.equal(logits_in(worker, read.carried, 30, 10)[0], again) and not torch.equal(again, whole)


def test_the_flat_spelling_of_sizes_is_that_of_each_layer() -> None:
    config = {"model_type": "diffusion_gemma", "canvas_length": 64, "text_config": {**TEXT, "sliding_window": 9}}
    read = read_config(config)
    assert read.block_lengths == (64,) and read.widths() == [(2, 16), (1, 32), (2, 16), (1, 32)]
    assert [layer.keys_as_values for layer in read.layers] == [False, True, False, True]
    assert [layer.window for layer in read.layers] == [9, None, 9, None] and read.mask_token_id is None


@pytest.mark.parametrize(
    "key,value", [("hidden_size_per_layer_input", 16), ("num_kv_shared_layers", 2), ("use_bidirectional_attention", "all")]
)
def test_what_such_a_network_does_not_compute_is_refused_by_name(key: str, value: Any) -> None:
    for kind in ("diffusion_gemma", "gemma4"):
        with pytest.raises(ValueError, match=key):
            text = {**TEXT, "enable_moe_block": True, "hidden_size_per_layer_input": 0, key: value}
            read_config({"model_type": kind, "text_config": text})
