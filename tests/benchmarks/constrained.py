"""What following a grammar costs: llguidance, which Stride uses, against xgrammar, the usual alternative.

`python -m tests.benchmarks.constrained` needs `pip install xgrammar`. Both follow the same JSON documents over the same
vocabularies, token by token: a byte tokeniser of 264, and a byte-level BPE of 150,000 trained here on the Python sources here.
"""

from __future__ import annotations

import json
import random
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xgrammar
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kernels.token_sampling import apply_bitmask
from service.models.loading import EMBEDDED

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 5},
        "size": {"type": "number"},
        "place": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}},
            "required": ["city", "code"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "tags", "size", "place"],
    "additionalProperties": False,
}
BATCH = 16


def large_tokenizer(size: int = 150_000) -> Tokenizer:
    """A byte-level BPE of `size` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"],
        show_progress=False, max_token_length=64,
    )  # fmt: skip
    places = (Path(sysconfig.get_paths()[kind]) for kind in ("stdlib", "purelib"))
    sources = [str(file) for place in places for file in sorted(place.glob("**/*.py"))]
    random.Random(0).shuffle(sources)
    texts = (Path(source).read_text(encoding="utf-8", errors="replace") for source in sources[:8000])
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def documents(count: int = 20) -> list[str]:
    rng = random.Random(0)
    words = ["harbour", "lantern", "quiet", "Größe", "meadow", "東京", "winter", "signal"]
    return [
        json.dumps(
            {
                "name": " ".join(rng.choices(words, k=3))[:40],
                "tags": rng.choices(["red", "green", "blue"], k=rng.randrange(5)),
                "size": round(rng.uniform(0, 100), 2),
                "place": {"city": rng.choice(words), "code": f"AB-{rng.randrange(1000, 9999)}"},
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )
        for _ in range(count)
    ]


def follow(
    begin: Callable[[], Any], mask: Callable[[Any], Any], take: Callable[[Any, int], bool], texts: list[list[int]]
) -> list[float]:  # fmt: skip
    """Seconds of every mask with the step after it."""
    out = []
    for tokens in texts:
        matcher = begin()
        for token in tokens:
            started = time.perf_counter()
            mask(matcher)
            assert take(matcher, token)
            out.append(time.perf_counter() - started)
    return out


def report(name: str, loading: float, compiling: float, steps: list[float]) -> float:
    ordered = sorted(steps)
    mean = statistics.mean(steps)
    print(
        f"{name:<12} tokeniser {loading * 1e3:8.1f} ms   grammar {compiling * 1e3:8.2f} ms   a token: mean {mean * 1e6:7.1f} µs"
        f"   median {ordered[len(ordered) // 2] * 1e6:7.1f} µs   99 % {ordered[int(len(ordered) * 0.99)] * 1e6:8.1f} µs"
    )
    return mean


def compare(name: str, tokenizer: Tokenizer, end: int) -> None:
    vocabulary = tokenizer.get_vocab_size()
    texts = [tokenizer.encode(text, add_special_tokens=False).ids for text in documents()]
    print(f"\n{name}: {vocabulary} tokens, {sum(map(len, texts))} steps of {len(texts)} documents")

    started = time.perf_counter()
    lexicon = LLTokenizer(tokenizer.to_str(), n_vocab=vocabulary, eos_token=[end])
    loaded = time.perf_counter()
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA), overrides={"whitespace_flexible": False})
    matcher = LLMatcher(lexicon, grammar, log_level=0)
    compiled = time.perf_counter()
    steps = follow(matcher.deep_copy, lambda m: m.compute_bitmask(), lambda m, token: m.consume_token(token), texts)
    ours = report("llguidance", loaded - started, compiled - loaded, steps)

    started = time.perf_counter()
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    info = xgrammar.TokenizerInfo(
        [word for word, _ in words], xgrammar.VocabType.BYTE_LEVEL, vocab_size=vocabulary, stop_token_ids=[end]
    )
    loaded = time.perf_counter()
    compiler = xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)
    form = compiler.compile_json_schema(json.dumps(SCHEMA), any_whitespace=False, separators=(",", ":"))
    compiled = time.perf_counter()
    bits = xgrammar.allocate_token_bitmask(1, vocabulary)
    steps = follow(
        lambda: xgrammar.GrammarMatcher(form), lambda m: m.fill_next_token_bitmask(bits), lambda m, t: m.accept_token(t), texts
    )
    theirs = report("xgrammar", loaded - started, compiled - loaded, steps)
    print(f"xgrammar / llguidance, a token: {theirs / ours:.2f}")

    logits = torch.randn(BATCH, vocabulary)
    words32 = xgrammar.allocate_token_bitmask(BATCH, vocabulary)
    words32.random_(-(2**31), 2**31 - 1)
    rows = torch.arange(BATCH)
    timings = []
    for apply in (
        lambda: apply_bitmask(logits, rows, words32.view(torch.uint8)),
        lambda: xgrammar.apply_token_bitmask_inplace(logits, words32),
    ):
        turns = []
        for _ in range(50):
            started = time.perf_counter()
            apply()
            turns.append(time.perf_counter() - started)
        timings.append(statistics.median(turns) * 1e6)
    print(f"mask applied to {BATCH} rows: ours in torch {timings[0]:.0f} µs, xgrammar's kernel {timings[1]:.0f} µs")


if __name__ == "__main__":
    torch.set_num_threads(2)
    small = Tokenizer.from_file(str(EMBEDDED / "shakespeare" / "tokenizer.json"))
    compare("bytes", small, 256)
    large = large_tokenizer()
    compare("large BPE", large, large.token_to_id("<|end|>"))
