"""Every family computes what transformers computes for the same folder, through the paged path that serves it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.cpu import library
from service.models.loading import ModelSpec, TextModel, load_model
from service.procedures.types import Axis, TokenRow
from service.workers.block_pool import BlockPool
from service.workers.kernel_forward import KernelForward
from service.workers.threads import Threads
from service.workers.token_worker import TokenWorker
from service.workers.torch_forward import TorchForward
from service.workers.types import Draws, RowError, TokenMove
from service.workers.unread import Unread
from tests.families import SIZES, VARIANTS, VOCABULARY, write_variant
from tests.few import each_way, few

pytest.importorskip("transformers")

CPU = torch.device("cpu")
PROMPT = torch.randint(3, VOCABULARY, (40,), generator=torch.Generator().manual_seed(7)).tolist()
BFLOAT16_TOLERANCE = 0.05
"""Of the logits' spread: the mean difference between bfloat16 here and float32 in transformers, same bfloat16 weights."""


class RecordingWorker(TokenWorker):
    """Keeps the logits that tokens are drawn from."""

    def __init__(self, model: TextModel, pool: BlockPool, **options: Any) -> None:
        super().__init__(model.network, pool, CPU, Threads(1, 1), **options)
        self.config = model.network.config
        self.recorded: list[Tensor] = []
        self._read_by, self._reader.read = self._reader.read, self._recording  # type: ignore[method-assign]

    def _recording(self, moves: Sequence[TokenMove], logits: Tensor) -> Unread:
        self.recorded.append(logits.clone())
        return self._read_by(moves, logits)


@functools.cache
def reference(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Any:
    return write_variant(folder, VARIANTS[name], dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def served(folder: Path, name: str, **options: Any) -> RecordingWorker:
    (folder / "tokenizer.json").write_text("{}")
    model = load_model(ModelSpec.parse(f"m={folder}{options.pop('spec', '')}{VARIANTS[name].options}"), CPU)
    assert isinstance(model, TextModel)
    return RecordingWorker(model, BlockPool(64, 4), **options)


def run(worker: TokenWorker, rows: list[TokenRow], blocks: list[list[int]]) -> list[int]:
    """The greedy token behind each row, one row a request."""
    outcomes = worker.run([TokenMove((row,), held, Draws(0, 0.0)) for row, held in zip(rows, blocks, strict=True)])
    tokens = []
    for outcome in outcomes:
        assert not isinstance(outcome, RowError)
        tokens.append(outcome.readings[-1].token)
    return tokens


def causal(tokens: list[int], start: int, *, every: bool = False) -> TokenRow:
    wanted = tuple(range(len(tokens))) if every else (len(tokens) - 1,)
    return TokenRow(Axis.EXPAND, tuple(tokens), start, "causal", True, wanted)


def logits_in(worker: RecordingWorker, *chunks: int) -> Tensor:
    """Logits of PROMPT [40, V], computed in forwards of so many tokens each."""
    blocks, start = worker.pool.allocate(10), 0
    worker.recorded.clear()
    for size in chunks:
        run(worker, [causal(PROMPT[start : start + size], start, every=True)], [blocks])
        start += size
    worker.pool.release(blocks)
    return torch.cat(worker.recorded)


EXPERTS = ("mixtral", "mixtral-window-tied", "qwen3_moe", "qwen3_moe-some-dense", "gemma4", "gemma4-experts-capped")
"""What the kernel does not run: for these torch is the only way."""
KERNEL = [name for name in VARIANTS if name not in EXPERTS]
TORCH = (
    *EXPERTS, "gemma2", "gemma2-no-caps", "gemma3-scaled-caps", "gpt2-odd", "llama-biases-tied", "llama-linear", "llama-llama3",
    "llama-single-kv-wide-heads", "llama-yarn-mscale", "mistral-window", "olmo2-tied-biases", "phi3-longrope-long",
    "phi3-longrope-short", "phi3-partial", "qwen2-window-on-some-tied", "qwen3-biases-window", "smollm3-listed-window-biases",
)  # fmt: skip


@pytest.mark.parametrize("name,way", each_way(VARIANTS, KERNEL, TORCH), indirect=["way"])
def test_logits_equal_those_of_transformers_whole_in_chunks_and_token_by_token(folder: Path, name: str, way: str) -> None:
    model = reference(folder / name, name)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0]
    assert expected.std() > 0.1, "a test with flat logits shows nothing"
    worker = served(folder / name, name)
    for chunks in [(40,), (23, 17), (32, *[1] * 8)]:
        torch.testing.assert_close(logits_in(worker, *chunks), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(library() is None, reason="the CPU kernels need AVX-512 with bfloat16, and g++")
@pytest.mark.parametrize("name", VARIANTS)
def test_the_kernel_runs_all_families_but_mixtures_of_experts_and_gemma4(folder: Path, name: str) -> None:
    reference(folder / name, name)
    assert isinstance(served(folder / name, name)._forward, TorchForward if name in EXPERTS else KernelForward)


# transformers changes longrope's factors in the middle of a text that grows beyond the original length; here a served
# length decides once. Its prompt of 40 is compared above.
GROWING = [name for name in VARIANTS if name != "phi3-longrope-long"]
GREEDY = ("gemma2", "gemma4-experts-capped", "gpt2", "llama-dynamic", "mixtral", "smollm3-listed-window-biases")


@pytest.mark.parametrize(
    "name,way", each_way(GROWING, ("gemma3", "gpt2-odd", "llama", "mistral-window"), GREEDY), indirect=["way"]
)
def test_greedy_texts_equal_those_of_transformers_in_a_mixed_batch(folder: Path, name: str, way: str) -> None:
    model = reference(folder / name, name)
    lengths, count = (33, 5, 18), 20
    texts = [PROMPT[:length] for length in lengths]
    expected = [
        model.generate(torch.tensor([text]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)[0].tolist()
        for text in texts
    ]  # fmt: skip
    worker = served(folder / name, name)
    blocks = [worker.pool.allocate(-(-(length + count) // 4)) for length in lengths]
    cached = [0] * len(texts)
    run(worker, [causal(texts[0][:20], 0)], blocks[:1])
    cached[0] = 20
    for _ in range(count):
        rows = [causal(text[done:], done) for text, done in zip(texts, cached, strict=True)]
        cached = [len(text) for text in texts]
        for text, token in zip(texts, run(worker, rows, blocks), strict=True):
            text.append(token)
    assert texts == expected


ONE_EACH = ["llama", "gemma2", "gemma3", "gpt2", "olmo2", "phi3-partial", "qwen2", "qwen3_moe", "smollm3"]


@pytest.mark.parametrize("name,way", each_way(ONE_EACH, ONE_EACH[:-2], ["gemma3", "gpt2", "qwen3_moe"]), indirect=["way"])
def test_bfloat16_stays_near_float32(folder: Path, name: str, way: str) -> None:
    place = folder / f"{name}-bfloat16"
    model = reference(place, name, torch.bfloat16)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0]
    worker = served(place, name, spec=",dtype=bfloat16")
    assert worker.cache.store.dtype is torch.bfloat16
    difference = (logits_in(worker, 23, 17) - expected).abs()
    assert difference.mean() < BFLOAT16_TOLERANCE * expected.std()


@pytest.mark.parametrize(
    "name,spec",
    [
        ("gemma2", ""), ("gpt2", ""), ("mixtral", ""), ("gemma4-experts-capped", ""), ("qwen2", ",quantization=int8"),
        ("qwen2", ",quantization=fp8"),
    ],
)
def test_a_batch_invariant_worker_gives_the_same_bits_for_any_chunks(folder: Path, name: str, spec: str, way: str) -> None:
    reference(folder / name, name)
    worker = served(folder / name, name, spec=spec, batch_invariant=True)
    whole = logits_in(worker, 40)
    assert torch.equal(logits_in(worker, 7, 20, 13), whole)


@pytest.mark.parametrize("quantization,near", [("int8", 0.1), ("fp8", 0.3)])
@pytest.mark.parametrize("name", few(["llama-biases-tied", "gpt2", "mixtral"], "gpt2", "mixtral"))
def test_weights_of_8_bits_are_near_and_their_matrices_take_a_quarter_of_float32(
    folder: Path, name: str, quantization: str, near: float
) -> None:
    """The random numbers of a row are of one size, which suits int8: fp8 has a mantissa of 3 bits for each."""
    reference(folder / name, name)
    (folder / name / "tokenizer.json").write_text("{}")

    def loaded(spec: str) -> tuple[RecordingWorker, int]:
        """A worker, and the bytes of its matrices."""
        model = load_model(ModelSpec.parse(f"m={folder / name}{spec}"), CPU)
        assert isinstance(model, TextModel)
        matrices = sum(p.nbytes for p in model.network.model.layers.parameters() if p.ndim > 1)
        return RecordingWorker(model, BlockPool(64, 4)), matrices

    (exact, whole), (rounded, quarter) = loaded(",dtype=float32"), loaded(f",dtype=float32,quantization={quantization}")
    expected = logits_in(exact, 40)
    assert (logits_in(rounded, 40) - expected).abs().mean() < near * expected.std()
    assert quarter < 0.27 * whole


def test_the_text_half_of_a_model_of_text_and_pictures(folder: Path) -> None:
    import transformers

    text = transformers.Gemma3TextConfig(**{**SIZES, **VARIANTS["gemma3"].changes})
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    config = transformers.Gemma3Config(text_config=text, vision_config={**vision, "patch_size": 14}, mm_tokens_per_image=4)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    place = folder / "gemma3-pictures"
    model.save_pretrained(place)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(logits_in(served(place, "gemma3"), 23, 17), expected, atol=1e-4, rtol=1e-4)
