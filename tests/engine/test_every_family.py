"""Promise 1 for every family, by the CPU kernel and by torch: texts do not depend on the batch, the cache, chunks or being set
back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.engine.lane import Lane, Limits
from service.engine.loop import Engine, Served
from service.engine.messages import ModelCard, Sampling, Submit, TextWork
from service.models.loading import ModelSpec, TextModel, load_model
from service.workers.block_pool import BlockPool
from service.workers.threads import Threads
from service.workers.token_worker import TokenWorker
from tests.engine.driving import finish_all
from tests.families import VARIANTS, VOCABULARY, write_variant
from tests.few import each_way

pytest.importorskip("transformers")

CARD = ModelCard("m", "text", "", [], ["autoregressive"], "autoregressive", 0, VOCABULARY, 256)
SHARED = torch.randint(3, VOCABULARY, (29,), generator=torch.Generator().manual_seed(7)).tolist()
BLOCK = 4
SUBMITS = [
    Submit(f"r{i}", "m", "autoregressive", {}, i, TextWork([*SHARED, *range(10, 10 + i)], 14, Sampling(temperature=i / 2)), 0.0)
    for i in range(3)
]  # fmt: skip
"""The first is greedy. Each fills 11 or 12 blocks in the end, of which 7 are the same for all."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


TORCH = ("gemma2", "gemma4", "gpt2", "mixtral", "qwen3", "smollm3-listed-window-biases")
KERNEL = ("gemma3", "gpt2-odd", "llama-biases-tied", "mistral-window")


@pytest.mark.parametrize("name,way", each_way(VARIANTS, KERNEL, TORCH), indirect=["way"])
def test_texts_are_the_same_alone_mixed_chunked_cached_and_set_back(folder: Path, name: str, way: str) -> None:
    if not (folder / name).exists():
        write_variant(folder / name, VARIANTS[name])
        (folder / name / "tokenizer.json").write_text("{}")
    cpu = torch.device("cpu")
    model = load_model(ModelSpec.parse(f"m={folder / name}{VARIANTS[name].options}"), cpu)
    assert isinstance(model, TextModel)
    worker = TokenWorker(model.network, BlockPool(64, BLOCK), cpu, Threads(1, 1))

    def engine(blocks: int = 64, tokens: int = 512, prefix_cache: bool = True) -> Engine:
        return Engine([Served(CARD, Lane(BlockPool(blocks, BLOCK), Limits(8, tokens, 8), prefix_cache), worker)])

    def ran(engine: Engine) -> tuple[dict[str, list[int]], list[int | None]]:
        outputs = finish_all(engine, SUBMITS)
        return dict(outputs.tokens), [outputs.done[submit.id].usage.cached_tokens for submit in SUBMITS]

    alone = {each.id: finish_all(engine(prefix_cache=False), [each]).tokens[each.id] for each in SUBMITS}
    assert len({tuple(tokens) for tokens in alone.values()}) == 3, "a test with equal texts shows little"
    assert ran(engine(prefix_cache=False)) == (alone, [0, 0, 0])
    roomy = engine(tokens=9)
    assert ran(roomy) == (alone, [0, 28, 28])
    assert ran(roomy) == (alone, [28, 28, 28])
    for prefix_cache in (True, False):
        tight = engine(16 if prefix_cache else 20, prefix_cache=prefix_cache)
        assert ran(tight)[0] == alone and tight.gauges().preemptions["m"] > 0
