"""What a forward can give and take beside tokens and logits: the same by the CPU kernel and by torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.models.loading import ModelSpec, TextModel, load_model
from service.procedures.types import Axis, TokenRow
from service.workers.block_pool import BlockPool
from service.workers.forward import Forward
from service.workers.packed_rows import PackedRows
from service.workers.threads import Threads
from service.workers.token_worker import TokenWorker
from service.workers.types import Draws, TokenMove
from tests.families import VARIANTS, write_variant

CPU = torch.device("cpu")
TOKENS = tuple(range(5, 27))


def model(folder: Path, variant: str) -> TextModel:
    write_variant(folder, VARIANTS[variant])
    (folder / "tokenizer.json").write_text("{}")
    loaded = load_model(ModelSpec.parse(f"m={folder}"), CPU)
    assert isinstance(loaded, TextModel)
    return loaded


def forward_of(folder: Path, variant: str = "qwen3") -> Forward:
    """Over an own empty cache, of a model that is loaded anew: a worker takes its network over."""
    return TokenWorker(model(folder, variant).network, BlockPool(32, 4), CPU, Threads(1, 1))._forward


def packed(*rows: TokenRow) -> PackedRows:
    moves = [TokenMove((row,), list(range(8 * i, 8 * i + 8)), Draws(0)) for i, row in enumerate(rows)]
    return PackedRows.of(moves, 4)


def causal(tokens: tuple[int, ...], start: int = 0) -> TokenRow:
    return TokenRow(Axis.EXPAND, tokens, start, "causal", True, tuple(range(len(tokens))))


@pytest.mark.parametrize("variant", ["qwen3", "gpt2", "gemma2"])
@torch.inference_mode()
def test_hidden_states_are_those_that_the_logits_come_from(tmp_path: Path, way: str, variant: str) -> None:
    rows = packed(causal(TOKENS), causal(TOKENS[::-1]))
    plain = forward_of(tmp_path, variant)(rows)
    told = forward_of(tmp_path, variant)(rows, states=True)
    assert plain.states is None and told.states is not None and torch.equal(plain.logits, told.logits)
    logits = model(tmp_path, variant).network.logits(told.states)
    torch.testing.assert_close(logits, told.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", ["qwen3", "gpt2", "gemma2"])
@torch.inference_mode()
def test_vectors_stand_in_for_embeddings(tmp_path: Path, way: str, variant: str) -> None:
    rows = packed(causal(TOKENS))
    forward = forward_of(tmp_path, variant)
    inputs = forward.embed(torch.tensor(TOKENS))
    kept = inputs.clone()
    expected = forward_of(tmp_path, variant)(rows)
    assert torch.equal(forward(rows, inputs).logits, expected.logits) and torch.equal(inputs, kept)
    other = packed(causal(TOKENS[::-1]))
    assert torch.equal(forward_of(tmp_path, variant)(other, inputs).logits, expected.logits), "tokens were looked at"


@torch.inference_mode()
def test_a_block_sees_the_cached_text_behind_it_as_far_as_it_says(tmp_path: Path, way: str) -> None:
    """Some tokens of a block that was computed before, computed again, are what they were while nothing has changed."""
    forward, whole = forward_of(tmp_path), TokenRow(Axis.REFINE, TOKENS[8:20], 8, "block", False, tuple(range(12)))
    prefix = causal(TOKENS[:8])
    forward(packed(prefix))
    expected = forward(packed(whole)).logits
    part = TokenRow(Axis.REFINE, TOKENS[10:14], 10, "block", False, (0, 1, 2, 3), until=20)
    torch.testing.assert_close(forward(packed(part)).logits, expected[2:6], atol=1e-4, rtol=1e-4)
    short = TokenRow(Axis.REFINE, TOKENS[10:14], 10, "block", False, (0, 1, 2, 3), until=19)
    assert not torch.allclose(forward(packed(short)).logits, expected[2:6], atol=1e-3)
