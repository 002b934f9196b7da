"""Diffusion language models compute what an independent network computes with their attention mask and their weights."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.models.loading import ModelSpec, TextModel, load_model
from service.procedures.types import Axis, TokenRow
from service.workers.block_pool import BlockPool
from tests.diffusion_checkpoints import LAYOUTS, VOCABULARY, logits_of, write_layout
from tests.models.test_families import RecordingWorker, run, way

pytest.importorskip("transformers")

__all__ = ["way"]
TEXT = torch.randint(3, VOCABULARY - 1, (40,), generator=torch.Generator().manual_seed(3)).tolist()
BLOCKS = [name for name, layout in LAYOUTS.items() if layout.config["model_type"] in ("sdar", "Fast_dLLM_Qwen")]


@functools.cache
def reference(folder: Path, name: str) -> Any:
    return write_layout(folder, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diffusion")


def served(folder: Path, **options: Any) -> RecordingWorker:
    (folder / "tokenizer.json").write_text("{}")
    model = load_model(ModelSpec.parse(f"m={folder}"), torch.device("cpu"))
    assert isinstance(model, TextModel)
    return RecordingWorker(model, BlockPool(64, 4), **options)


def kept(tokens: list[int], start: int, length: int) -> TokenRow:
    return TokenRow(Axis.EXPAND, tuple(tokens), start, "block", True, tuple(range(len(tokens))), block_length=length)


def logits_in(worker: RecordingWorker, length: int, *chunks: int) -> Tensor:
    """Logits of TEXT [40, V], kept in forwards of so many tokens each."""
    blocks, start = worker.pool.allocate(10), 0
    worker.recorded.clear()
    for size in chunks:
        run(worker, [kept(TEXT[start : start + size], start, length)], [blocks])
        start += size
    worker.pool.release(blocks)
    return torch.cat(worker.recorded)


@pytest.mark.parametrize("name", BLOCKS)
def test_text_in_blocks_has_the_logits_of_a_block_causal_mask_whole_and_in_chunks(folder: Path, name: str, way: str) -> None:
    network, worker = reference(folder / name, name), served(folder / name)
    assert worker.run_by == ("torch" if way == "torch" else "the CPU kernel")
    (length,) = worker.config.block_lengths
    expected = logits_of(network, TEXT, length)
    assert (expected - logits_of(network, TEXT, 1)).abs().max() > 0.1, "the mask makes no difference"
    for chunks in [(40,), (24, 16), (8, 8, 24)]:
        torch.testing.assert_close(logits_in(worker, length, *chunks), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_batch_invariant_worker_gives_the_same_bits_for_any_chunks_of_blocks(folder: Path, name: str, way: str) -> None:
    reference(folder / name, name)
    worker = served(folder / name, batch_invariant=True)
    whole = logits_in(worker, worker.config.block_lengths[0], 40)
    assert torch.equal(logits_in(worker, worker.config.block_lengths[0], 8, 24, 8), whole)


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_a_whole_sequence_has_the_logits_of_no_mask_at_all(folder: Path, name: str, way: str) -> None:
    network, worker = reference(folder / name, name), served(folder / name)
    assert worker.run_by == ("torch" if way == "torch" else "the CPU kernel") and worker.config.attention == "full"
    row = TokenRow(Axis.REFINE, tuple(TEXT), 0, "block", False, tuple(range(40)), shift=worker.config.shift)
    run(worker, [row], [worker.pool.allocate(10)])
    torch.testing.assert_close(worker.recorded[-1], logits_of(network, TEXT, 40), atol=1e-4, rtol=1e-4)
