"""Verified drafting gives the text of plain decoding for every family, by the kernel and by torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from service.engine.assembly import build_engine
from service.engine.messages import Sampling, Submit, TextWork
from service.settings import Settings
from tests.engine.driving import finish_all
from tests.engine.guessing import install, oracle
from tests.families import VARIANTS, VOCABULARY, write_variant
from tests.few import each_way

pytest.importorskip("transformers")

DRAFTERS: dict[str, dict[str, Any]] = {
    "ngram": {"drafter": "ngram", "ngram_min": 1, "draft_tokens": 5, "adaptive": False},
    "draft_model": {"drafter": "draft_model", "draft_tokens": 3, "adaptive": False},
    "ngram tree": {"drafter": "ngram", "ngram_min": 1, "draft_tokens": 5, "width": 2, "adaptive": False},
    "draft_model tree": {"drafter": "draft_model", "draft_tokens": 3, "width": 4, "adaptive": False},
}
PROMPTS = [[5, 6, 7, 8] * 6, [9, 10, 9, 10, 11] * 3, list(range(20, 60))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


TORCH = ("gemma4-experts-capped", "gpt2", "smollm3-listed-window-biases")
KERNEL = ("gemma2", "gpt2-odd", "llama", "smollm3-listed-window-biases")


@pytest.mark.parametrize("name,way", each_way(VARIANTS, KERNEL, TORCH), indirect=["way"])
def test_greedy_and_sampled_texts_are_those_of_plain_decoding(
    name: str, way: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder / name
    if not place.exists():
        write_variant(place, VARIANTS[name])
        words = {f"<{i}>": i for i in range(VOCABULARY)}
        Tokenizer(WordLevel(words, unk_token="<0>")).save(str(place / "tokenizer.json"))
    spec = f"m={place}{VARIANTS[name].options},draft_model={place}"
    engine = build_engine(Settings(models=[spec], threads=1, kv_memory=1 << 22, batch_invariant=True))

    def submits(procedure: str, parameters: dict[str, Any]) -> list[Submit]:
        works = [TextWork(prompt, 12, Sampling(temperature=t), ignore_eos=True) for t in (0.0, 0.7) for prompt in PROMPTS]
        return [Submit(f"{i}", "m", procedure, parameters, i, work, 0.0) for i, work in enumerate(works)]

    plain = finish_all(engine, submits("autoregressive", {}))
    for parameters in DRAFTERS.values():
        together = finish_all(engine, submits("speculative", parameters))
        assert together.tokens == plain.tokens and not together.failed
        if "width" in parameters:
            alone = finish_all(engine, submits("speculative", parameters)[:1])
            assert alone.tokens["0"] == plain.tokens["0"]
    texts = [submit.work.prompt + plain.tokens[submit.id] for submit in submits("", {})]  # type: ignore[union-attr]
    install(monkeypatch, oracle(texts, 0.8, VOCABULARY))
    guessed = finish_all(engine, submits("speculative", DRAFTERS["ngram"]))
    assert guessed.tokens == plain.tokens
    assert sum(done.usage.accepted_tokens or 0 for done in guessed.done.values()) > 20
