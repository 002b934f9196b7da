"""A decoder that is divided among processes gives what it gives in one; the engine's half and the other follow one another."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.models.loading import ModelError, ModelSpec, TextModel, load_model
from service.models.parallel_decoder import ParallelDecoder
from service.procedures.types import Axis, Draft, TokenRow
from service.workers.block_pool import BlockPool
from service.workers.hosting import Hosting, host
from service.workers.rank_messages import Clear, write
from service.workers.ranks import Ranks
from service.workers.threads import Threads
from service.workers.token_worker import TokenWorker
from service.workers.types import Draws, RowError, TokenMove, TokenOutcome, TokenRead
from tests.families import VARIANTS, VOCABULARY, write_variant
from tests.few import few

pytest.importorskip("transformers")

CPU = torch.device("cpu")
TEXT = torch.randint(3, VOCABULARY, (60,), generator=torch.Generator().manual_seed(3)).tolist()
FAMILIES = [
    "llama", "llama-biases-tied", "llama-single-kv-wide-heads", "gemma2-tight-caps", "gemma3", "qwen3", "qwen3-biases-window",
    "olmo2-tied-biases", "gpt2-odd", "phi3-partial", "mixtral", "qwen3_moe-some-dense", "gemma4", "gemma4-experts-capped",
]  # fmt: skip


class RecordingWorker(TokenWorker):
    """Keeps the logits that tokens are drawn from."""

    def __init__(self, model: TextModel, **options: Any) -> None:
        super().__init__(model.network, BlockPool(48, 4), CPU, Threads(1, 1), **options)
        self.recorded: list[Tensor] = []
        self._read_by, self._reader.read = self._reader.read, self._recording  # type: ignore[method-assign]

    def _recording(self, moves: Sequence[TokenMove], logits: Tensor) -> list[TokenOutcome]:
        self.recorded.append(logits.clone())
        return self._read_by(moves, logits)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """One process beside this one, for every model of this file in turn."""
    ranks = Ranks("tested", 2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("divided")


@functools.cache
def written(folder: Path, name: str) -> Path:
    write_variant(folder / name, VARIANTS[name])
    (folder / name / "tokenizer.json").write_text("{}")
    return folder / name


def whole(place: Path, options: str = "", **given: Any) -> RecordingWorker:
    model = load_model(ModelSpec.parse(f"m={place}{options}"), CPU)
    assert isinstance(model, TextModel)
    return RecordingWorker(model, **given)


def divided(ranks: Ranks, place: Path, options: str = "", **given: Any) -> RecordingWorker:
    text = f"m={place}{options},tensor_parallel=2"
    ranks.begin_loading(text, CPU, 0)
    model = load_model(ModelSpec.parse(text), CPU)
    ranks.loaded()
    assert isinstance(model, TextModel)
    return RecordingWorker(model, ranks=ranks, **given)


def row(start: int, stop: int, mode: Any = "causal", **more: Any) -> TokenRow:
    axis = Axis.REFINE if mode == "block" else Axis.EXPAND
    return TokenRow(axis, tuple(TEXT[start:stop]), start, mode, mode == "causal", tuple(range(stop - start)), **more)


def everything(worker: RecordingWorker) -> Tensor:
    """Logits of a prompt in chunks beside another one, of decoding beside a canvas, of a tree of guesses, and of what
    follows the guesses that were right."""
    first, second = worker.pool.allocate(12), worker.pool.allocate(12)
    worker.recorded.clear()
    draws = Draws(0, 0.0)

    def run(*moves: tuple[TokenRow, list[int]]) -> list[TokenOutcome]:
        return worker.run([TokenMove((one,), blocks, draws) for one, blocks in moves])

    run((row(0, 17), first), (row(0, 5), second))
    run((row(17, 30), first), (row(5, 6), second))
    run((row(30, 31), first), (row(6, 14, "block"), second))
    read = run((row(31, 32), first))[0]
    assert isinstance(read, TokenRead)
    right = read.readings[0].token
    # Of two guesses the second is right: what was computed of it has to be brought to its position.
    run((TokenRow.tree(TEXT[31], 31, Draft(((right + 1) % VOCABULARY, right, 51), (-1, -1, 1))), first), (row(6, 8), second))
    run((row(33, 36), first))
    logits = torch.cat(worker.recorded)
    for blocks in (first, second):
        worker.pool.release(blocks)
    return logits


OFTEN = (
    "llama", "llama-single-kv-wide-heads", "gemma2-tight-caps", "olmo2-tied-biases", "gpt2-odd", "phi3-partial",
    "qwen3_moe-some-dense", "gemma4-experts-capped",
)  # fmt: skip


@pytest.mark.parametrize("name", few(FAMILIES, *OFTEN))
def test_two_processes_give_the_logits_of_one(ranks: Ranks, folder: Path, name: str) -> None:
    place = written(folder, name)
    expected = everything(whole(place))
    assert expected.std() > 0.1, "a test with flat logits shows nothing"
    torch.testing.assert_close(everything(divided(ranks, place)), expected, atol=2e-4, rtol=1e-4)


def test_each_rank_holds_half_of_the_matrices_and_of_the_cache(ranks: Ranks, folder: Path) -> None:
    one, half = whole(written(folder, "llama")), divided(ranks, written(folder, "llama"))
    assert half.cache.store.numel() * 2 == one.cache.store.numel()
    model = load_model(ModelSpec.parse(f"m={folder / 'llama'}"), CPU)
    parts = [load_model(ModelSpec.parse(f"m={folder / 'llama'},tensor_parallel=2"), CPU, rank=rank) for rank in (0, 1)]

    def matrices(loaded: Any) -> int:
        return sum(p.numel() for p in loaded.network.parameters() if p.ndim > 1)

    assert sum(map(matrices, parts)) == matrices(model)
    assert [part.parameters for part in parts] == [model.parameters] * 2
    assert abs(matrices(parts[0]) - matrices(parts[1])) <= 2 * 48, "99 tokens are 49 and 50"


def test_int8_weights_have_a_scale_for_every_row_and_rank(ranks: Ranks, folder: Path) -> None:
    place = written(folder, "llama-biases-tied")
    exact = everything(whole(place))
    rounded = everything(divided(ranks, place, ",dtype=float32,quantization=int8"))
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().mean() < 0.1 * exact.std()


def test_bfloat16_stays_near_float32(ranks: Ranks, folder: Path) -> None:
    place = written(folder, "qwen3")
    worker = divided(ranks, place, ",dtype=bfloat16")
    assert worker.cache.store.dtype is torch.bfloat16
    exact = everything(whole(place))
    assert (everything(worker) - exact).abs().mean() < 0.05 * exact.std()


def test_batch_invariant_ranks_give_the_same_bits_for_any_chunks(ranks: Ranks, folder: Path) -> None:
    worker = divided(ranks, written(folder, "mixtral"), batch_invariant=True)
    blocks, chunked = worker.pool.allocate(10), worker.pool.allocate(10)

    def run(*moves: tuple[TokenRow, list[int]]) -> Tensor:
        worker.recorded.clear()
        worker.run([TokenMove((one,), held, Draws(0, 0.0)) for one, held in moves])
        return worker.recorded[0]

    at_once = run((row(0, 40), blocks))
    parts = [run((row(0, 7), chunked)), run((row(7, 27), chunked)), run((row(27, 40), chunked))]
    assert torch.equal(torch.cat(parts), at_once)


@pytest.mark.parametrize("log_format", ["json", "human"])
def test_a_rank_that_fails_says_so_in_the_servers_log_with_its_number(log_format: str) -> None:
    command = [sys.executable, "-m", "service.workers.rank_process", "3", "text", "info", log_format]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        write(process.stdin, msgspec.msgpack.encode(Clear([1])))  # of a cache that it has not got
        told = process.stderr.read().decode()
    assert process.returncode == 1
    if log_format == "json":
        (line,) = [json.loads(line) for line in told.splitlines()]
        assert line["level"] == "critical" and "AssertionError" in line["exception"]
        assert (line["process"], line["model"], line["rank"]) == ("rank", "text", 3)
    else:
        assert " CRITICAL stride.ranks: the rank ends: AssertionError model=text rank=3\n" in told


def test_embeddings_come_from_whoever_has_them(ranks: Ranks, folder: Path) -> None:
    place = written(folder, "gemma3")
    model = load_model(ModelSpec.parse(f"m={place}"), CPU)
    assert isinstance(model, TextModel)
    tokens = torch.arange(VOCABULARY)
    expected = model.network.embed(tokens)
    with torch.inference_mode():
        assert torch.equal(divided(ranks, place)._forward.embed(tokens), expected)


def test_what_is_not_finite_is_forgotten_by_every_rank(ranks: Ranks, folder: Path) -> None:
    """The bad numbers are in one rank's heads; what the other then computes and keeps is as bad, until it forgets it."""
    worker = divided(ranks, written(folder, "llama"))
    blocks = worker.pool.allocate(1)
    worker.cache.store[:, blocks] = float("nan")
    assert isinstance(worker.run([TokenMove((row(1, 4),), blocks, Draws(0, 0.0))])[0], RowError)
    assert torch.isfinite(worker.cache.store).all()
    worker.recorded.clear()
    read = worker.run([TokenMove((row(0, 2),), blocks, Draws(0, 0.0))])[0]  # beside places 2 and 3, which it does not see
    assert isinstance(read, TokenRead) and torch.isfinite(worker.recorded[0]).all()


def test_a_part_that_cannot_be_loaded_says_so_and_names_its_rank(ranks: Ranks, tmp_path: Path) -> None:
    place = shutil.copytree(written(tmp_path, "llama"), tmp_path / "broken")
    tensors = load_file(place / "model.safetensors")
    tensors["lm_head.weight"][-1] = float("inf")
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lm_head.weight holds numbers that are not finite .* \(rank 1\)"):
        divided(ranks, place)


@pytest.mark.parametrize(
    "name,ranks,message",
    [
        ("llama", 3, "tensor_parallel is 3: num_attention_heads, 4, is not a multiple of 3"),
        ("gpt2-odd", 128, "num_attention_heads, 4, is not a multiple of 128"),
    ],
)
def test_a_model_that_cannot_be_divided_names_the_field(folder: Path, name: str, ranks: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(ModelSpec.parse(f"m={written(folder, name)},tensor_parallel={ranks}"), CPU)


def test_heads_are_refused_and_so_is_a_device_that_is_one(folder: Path) -> None:
    place = written(folder, "llama")
    with pytest.raises(ModelError, match="heads are for models that tensor_parallel does not divide"):
        load_model(ModelSpec.parse(f"m={place},tensor_parallel=2,heads={place}"), CPU)
    with pytest.raises(ModelError, match="tensor_parallel is for text models"):
        load_model(ModelSpec.parse("shapes,tensor_parallel=2"), CPU)
    with pytest.raises(ModelError, match="tensor_parallel is for CPUs and CUDA devices, and device is meta"):
        host(f"m={place},tensor_parallel=2,device=meta", Hosting("cpu", 1, 1 << 20, 16, 4, False))


def test_heads_beside_a_divided_model_are_left_out_and_its_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    parts = [load_model(ModelSpec.parse("shakespeare,tensor_parallel=3"), CPU, rank=rank) for rank in range(3)]
    assert all(isinstance(part, TextModel) and part.heads is None for part in parts)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("shakespeare: its heads are not loaded") and "tensor_parallel" in line


def test_ranks_that_are_closed_leave_and_this_process_stays() -> None:
    """A rank that ends otherwise ends the process that leads it."""
    ranks = Ranks("closed", 3)
    assert [process.poll() for process in ranks._processes] == [None, None]
    ranks.close()
    assert [process.returncode for process in ranks._processes] == [-9, -9]


def test_a_network_of_one_rank_is_not_divided(folder: Path) -> None:
    model = load_model(ModelSpec.parse(f"m={written(folder, 'llama')},tensor_parallel=1"), CPU)
    assert isinstance(model, TextModel) and not isinstance(model.network, ParallelDecoder)
