"""A whole decoder's forward through the Triton kernels against torch, over mixed rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.capture import CudaCapture
from kernels.dispatch import prefer_triton
from service.models.loading import ModelSpec, TextModel, load_model
from service.procedures.types import Axis, TokenRow
from service.workers.block_pool import BlockPool
from service.workers.packed_rows import PackedRows
from service.workers.paged_cache import PagedCache
from service.workers.threads import Threads
from service.workers.torch_forward import TorchForward
from service.workers.types import Draws, TokenMove
from tests import trees
from tests.calling_again import CalledAgain
from tests.families import VARIANTS, write_variant
from tests.few import few

pytest.importorskip("triton")

from tests.kernels.row_products import make_rows_alike

TOKENS = tuple(range(5, 45))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def forward_of(folder: Path, variant: str, device: torch.device, batch_invariant: bool = False) -> TorchForward:
    """Over an empty cache; the network is taken over, so that each has its own."""
    if not (folder / variant).exists():
        write_variant(folder / variant, VARIANTS[variant])
        (folder / variant / "tokenizer.json").write_text("{}")
    model = load_model(ModelSpec.parse(f"m={folder / variant}"), device)
    assert isinstance(model, TextModel)
    network = model.network
    network.fuse()
    cache = PagedCache.of(network.config, BlockPool(64, 4), network.dtype, device)
    return TorchForward(network, cache, Threads(1, 1), batch_invariant)


def packed(*rows: tuple[int, TokenRow]) -> PackedRows:
    """Each of a request, whose blocks lie in an order of their own."""
    moves = [TokenMove((row,), list(range(16 * one, 16 * one + 16))[::-1], Draws(0)) for one, row in rows]
    return PackedRows.of(moves, 4)


def causal(tokens: tuple[int, ...], start: int = 0) -> TokenRow:
    return TokenRow(Axis.EXPAND, tokens, start, "causal", True, tuple(range(len(tokens))))


PREFIXES = packed((0, causal(TOKENS[:22])), (1, causal(TOKENS[3:16])), (2, causal(TOKENS[::-2])))
MIXED = packed(
    (0, TokenRow.tree(7, 22, trees.random_draft(2, 4))),
    (1, causal((9,), 13)),
    (2, TokenRow(Axis.REFINE, TOKENS[8:11], 20, "block", False, (0, 2))),
    (3, causal(TOKENS[:4])),
)
OTHERS = ["gemma2", "mistral-window", "olmo2", "phi3-partial", "smollm3", "llama-single-kv-wide-heads"]


@pytest.mark.parametrize("variant", few(["qwen3", "gemma4", *OTHERS], "qwen3", "gemma4"))
@torch.inference_mode()
def test_triton_computes_what_torch_does(folder: Path, variant: str, device: torch.device) -> None:
    plain, ours = forward_of(folder, variant, torch.device("cpu")), forward_of(folder, variant, device)
    plain(PREFIXES)
    ours._cache.store.copy_(plain._cache.store)
    expected = plain(MIXED, states=True)
    with prefer_triton():
        found = ours(MIXED, states=True)
    assert found.states is not None and expected.states is not None
    for one, other in ((found.states, expected.states), (found.logits, expected.logits)):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours._cache.store.cpu(), plain._cache.store, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_invariant_bits_do_not_depend_on_batch_or_chunks(
    folder: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_rows_alike(monkeypatch)
    lone, among = (forward_of(folder, "qwen3", device, True) for _ in range(2))
    with prefer_triton():
        whole = lone(packed((0, causal(TOKENS[:6])))).logits
        among(packed((0, causal(TOKENS[:2])), (1, causal(TOKENS[3:4]))))
        last = among(packed((1, causal(TOKENS[8:9], 1)), (0, causal(TOKENS[2:6], 2)))).logits
    assert torch.equal(last[1:], whole[2:])


def decoding(count: int, start: int) -> PackedRows:
    """The next token of so many requests."""
    return packed(*((one, causal((3 + one + start,), start - one)) for one in range(count)))


@pytest.mark.parametrize("most", few([2, 3], 2))
@torch.inference_mode()
def test_captured_decode_forwards_give_what_eager_ones_do_and_padding_is_never_written(
    folder: Path, device: torch.device, most: int
) -> None:
    """With a capture that calls the forward again; on a GPU with a graph."""
    capture = CudaCapture(device) if device.type == "cuda" else CalledAgain()
    eager, captured = (forward_of(folder, "qwen3", device) for _ in range(2))
    eager(PREFIXES)
    captured._cache.store.copy_(eager._cache.store)
    with prefer_triton():
        captured.capture(most, capture)
        assert torch.equal(captured._cache.store, eager._cache.store), "a capture leaves no trace"
        for count, start in ((most, 13), (1, 14), (2, 14))[:most]:
            expected, found = (forward(decoding(count, start)) for forward in (eager, captured))
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
            assert bool(found.finite.all()) and len(found.finite) == count
            torch.testing.assert_close(captured._cache.store, eager._cache.store, rtol=1e-4, atol=1e-4)
        if isinstance(capture, CalledAgain):
            assert capture.captures == capture.replays == most
        mixed = captured(MIXED)
        torch.testing.assert_close(mixed.logits, eager(MIXED).logits, rtol=1e-4, atol=1e-4)
