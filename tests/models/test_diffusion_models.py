"""Diffusion language models compute what an independent network computes with their attention mask and their weights."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.models.decoder_config import ExpertsConfig
from service.models.families import read_config
from service.models.loading import ModelSpec, TextModel, load_model
from service.procedures.types import Axis, TokenRow
from service.workers.block_pool import BlockPool
from tests.diffusion_checkpoints import LAYOUTS, VOCABULARY, logits_of, write_layout
from tests.models.test_families import RecordingWorker, run

pytest.importorskip("transformers")

TEXT = torch.randint(3, VOCABULARY - 1, (40,), generator=torch.Generator().manual_seed(3)).tolist()
BLOCKS = [name for name, layout in LAYOUTS.items() if layout.config["model_type"] in ("sdar", "Fast_dLLM_Qwen", "llada2_moe")]


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
    assert worker.run_by == ("torch" if way == "torch" or name == "llada2" else "the CPU kernel")
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


@pytest.mark.parametrize(
    "name,attention,blocks,mask,shift",
    [
        ("sdar", "block", (4,), 151_669, False), ("fast_dllm", "block", (32,), 151_665, True),
        ("dream", "full", (), 151_666, True), ("llada", "full", (), 126_336, False),
        ("llada2", "block", (32,), 156_895, False),
    ],
)  # fmt: skip
def test_what_a_config_does_not_say_is_what_its_family_was_published_with(
    name: str, attention: str, blocks: tuple[int, ...], mask: int, shift: bool
) -> None:
    left_out = ("mask_token_id", "block_size", "bd_size", "embedding_size")
    json = {key: value for key, value in LAYOUTS[name].config.items() if key not in left_out}
    config = read_config({**json, "vocab_size": 160_000})
    assert (config.attention, config.block_lengths, config.mask_token_id, config.shift) == (attention, blocks, mask, shift)


def test_a_mixture_for_block_diffusion_is_both(folder: Path) -> None:
    mixture = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
    config = read_config({**LAYOUTS["sdar"].config, **mixture, "model_type": "sdar_moe", "decoder_sparse_step": 1})
    assert config.experts == ExpertsConfig(8, 2, 24, True) and config.block_lengths == (4,) and config.qk_norm == "head"


@pytest.mark.parametrize(
    "name,key,value",
    [
        ("llada", "alibi", True), ("llada", "rope", False), ("llada", "block_type", "sequential"),
        ("llada", "include_bias", True), ("llada", "embedding_size", 512), ("llada2", "topk_group", 5),
        ("llada2", "norm_head", True), ("sdar", "mask_token_id", 300),
    ],
)  # fmt: skip
def test_what_such_a_network_does_not_compute_is_refused_by_name(name: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match="5 of 4 groups" if key == "topk_group" else key):
        read_config({**LAYOUTS[name].config, key: value})
