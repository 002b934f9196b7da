"""The peers compute the model that Stride computes; and, with `make benchmark`, how much faster it goes."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

from tests.benchmarks.agreement import TOLERANCE, largest_gap
from tests.benchmarks.checkpoints import SHAPES, Shape, write_checkpoint
from tests.benchmarks.contestant import Engine
from tests.benchmarks.engines import LlamaBatched, TransformersContinuous, TransformersGenerate
from tests.benchmarks.http_servers import stride
from tests.benchmarks.language_models import HEADER, Load, entries, measure, prepare, prompts, read_bandwidth, rows

TINY = Shape(vocab=512, width=64, layers=2, heads=4, kv_heads=2, head_dim=32, intermediate=96)
LOAD = Load(streams=3, prompt=24, tokens=16)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("checkpoint"), TINY)


@pytest.mark.slow
def test_stride_behind_http_continues_with_the_tokens_of_the_reference(checkpoint: Path, tmp_path: Path) -> None:
    asked = prompts(TINY, LOAD, 0)
    server = stride(checkpoint, 1, "dtype=bfloat16", tmp_path / "log")
    try:
        streams = server.generate(asked, LOAD.tokens)
    finally:
        server.close()
    assert all(0 < each.first < each.last and len(each.tokens) == LOAD.tokens for each in streams)
    assert largest_gap(checkpoint, list(zip(asked, streams, strict=True))) < TOLERANCE


@pytest.mark.parametrize("name", ["generate", "continuous batching", "llama.cpp bf16", "llama.cpp q8_0"])
def test_a_peer_continues_with_the_tokens_of_the_reference_and_not_of_other_weights(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    asked = prompts(TINY, LOAD, 0)
    streams = _engine(name, checkpoint).generate(asked[1:], LOAD.tokens)
    pairs = list(zip(asked[1:], streams, strict=True))
    assert all(len(each.tokens) == LOAD.tokens for each in streams)
    assert largest_gap(checkpoint, pairs) < TOLERANCE
    assert largest_gap(write_checkpoint(tmp_path, TINY, seed=1), pairs) > 4 * TOLERANCE


def _engine(name: str, folder: Path) -> Engine:
    shape = (torch.get_num_threads(), LOAD.streams, LOAD.prompt + LOAD.tokens)
    if name.startswith("llama.cpp"):
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install -e '.[bench]'")
        pytest.importorskip("gguf", reason="gguf is not installed: pip install -e '.[bench]'")
        return LlamaBatched(name.split()[1])(folder, *shape)
    return TransformersGenerate(folder, *shape) if name == "generate" else TransformersContinuous(folder, *shape)


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_sixteen_streams_are_ahead_of_every_peer_and_one_is_near_the_fastest(tmp_path: Path) -> None:
    shape, load = SHAPES["135M"], Load()
    folder = prepare(tmp_path, shape)
    ours, *others = measure(folder, shape, entries(folder, 2, load, ["dtype=bfloat16"]), load)
    print(HEADER, *rows("135M", shape, [ours, *others], read_bandwidth(2)), sep="\n")
    peers = [each for each in others if each.why_not is None and not each.name.startswith("Stride")]
    for peer in peers:
        assert statistics.median(ours.streams) > statistics.median(peer.streams), peer.name
        if peer.name.startswith("llama.cpp") and peer.precision == ours.precision:
            assert statistics.median(ours.single) >= 0.8 * statistics.median(peer.single), peer.name
