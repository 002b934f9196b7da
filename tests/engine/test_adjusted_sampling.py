"""What a request asks of its logits: the same alone, in a crowd, and when it has to begin again."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from llguidance import LLMatcher

from service.engine.grammar import GrammarError, Grammars
from service.engine.messages import Finish, FromEngine, Submit, Tokens
from service.models.loading import EMBEDDED
from service.workers.occurrences import Occurrences
from tests.engine.driving import Outputs, engine_on, finish_all, one_of_every_kind, text_request

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
OBJECT = LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA), overrides={"whitespace_flexible": False})
KINDS: list[dict[str, Any]] = [
    {"sampling": {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 0.7}},
    {"sampling": {"repetition_penalty": 1.3, "frequency_penalty": -0.5}},
    {"sampling": {"logit_bias": {65: 100.0, 66: 99.0}}},
    {"grammar": OBJECT},
    {"grammar": LLMatcher.grammar_from_regex("[a-f]{5,9}")},
    {"logprobs": 3},
]


def _requests() -> list[Submit]:
    return [text_request(f"x{i}", 20 + i, **options) for i, options in enumerate(KINDS)]


def test_adjusted_requests_alone_and_in_a_crowd_give_the_same_tokens(tmp_path: Path) -> None:
    requests = _requests()
    crowd = finish_all(engine_on(tmp_path), requests + one_of_every_kind(10))
    assert not crowd.failed
    for request in requests:
        assert finish_all(engine_on(tmp_path), [request]).tokens[request.id] == crowd.tokens[request.id]


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_penalties_count_what_was_generated_and_not_the_prompt(tmp_path: Path, penalty: str) -> None:
    """The same greedy tokens as a plain loop over the network's own logits, which the log-probabilities give away."""
    request = text_request("x", 3, max_tokens=25, logprobs=264, sampling={"temperature": 0.0, penalty: 1.1})
    events: list[FromEngine] = []
    engine = engine_on(tmp_path)
    engine.take(request)
    while engine.has_work:
        events += engine.tick()
    generated: list[int] = []
    for event in events:
        if isinstance(event, Tokens):
            plain = torch.full((264,), float("-inf"))
            for token, logprob in event.logprobs[0].top:
                plain[token] = logprob
            for token in set(generated):
                plain[token] -= 1.1 * (generated.count(token) if penalty == "frequency_penalty" else 1)
            assert event.token_ids == [int(plain.argmax())]
            generated += event.token_ids
    assert len(generated) == 25
    free = finish_all(engine_on(tmp_path), [text_request("x", 3, max_tokens=25)]).tokens["x"]
    assert generated != free and len(set(generated)) > len(set(free))


def test_occurrences_grow_as_a_count_from_scratch_would() -> None:
    rng = random.Random(0)
    tokens = [rng.randrange(200) for _ in range(700)]
    seen, prompt = Occurrences(30), tokens[:30]
    for length in sorted(rng.sample(range(1, 701), 60)):
        seen.take(tokens[:length])
        counts = dict(zip(seen.tokens.tolist(), seen.counts.tolist(), strict=True))
        assert counts == {token: tokens[30:length].count(token) for token in set(tokens[:length])}
    assert set(prompt) <= set(seen.tokens.tolist())


@pytest.mark.parametrize("seed", range(6))
def test_an_output_follows_its_grammar_and_ends_with_it(tmp_path: Path, seed: int) -> None:
    sampling = {"temperature": 0.0 if seed == 0 else 1.0, "logit_bias": {125: 5.0}}
    request = text_request("x", seed, grammar=OBJECT, max_tokens=200, sampling=sampling)
    outputs = finish_all(engine_on(tmp_path), [request])
    value = json.loads(bytes(outputs.tokens["x"]))
    assert outputs.done["x"].finish_reason == "stop" and value.keys() == {"a"} and isinstance(value["a"], int)


def test_a_limit_cuts_an_output_inside_its_grammar(tmp_path: Path) -> None:
    outputs = finish_all(engine_on(tmp_path), [text_request("x", 1, grammar=OBJECT, max_tokens=3)])
    assert bytes(outputs.tokens["x"]) == b'{"a' and outputs.done["x"].finish_reason == "length"


def test_a_grammar_that_does_not_compile_fails_its_request_alone(tmp_path: Path) -> None:
    bad = text_request("bad", 1, grammar=LLMatcher.grammar_from_regex("(a"))
    outputs = finish_all(engine_on(tmp_path), [bad, *one_of_every_kind(6)])
    assert outputs.failed["bad"].status == 400 and set(outputs.failed) == {"bad"} and len(outputs.done) == 6


def test_a_grammar_that_leaves_nothing_to_draw_is_a_400(tmp_path: Path) -> None:
    only_the_mask = LLMatcher.grammar_from_lark("start: <[257]>")  # the mask token is never drawn
    outputs = finish_all(engine_on(tmp_path), [text_request("x", 1, grammar=only_the_mask), text_request("y", 2)])
    assert outputs.failed["x"].status == 400 and "grammar" in outputs.failed["x"].message and "y" in outputs.done


def test_a_request_can_be_ended_while_its_grammar_is_compiled(tmp_path: Path) -> None:
    engine, outputs = engine_on(tmp_path), Outputs()
    outputs.take(engine.take(text_request("x", 1, grammar=OBJECT)))
    assert engine.has_work
    outputs.take(engine.take(Finish("x")))
    assert outputs.done["x"].finish_reason == "cancelled" and not engine.has_work


def test_a_tokeniser_that_the_library_cannot_hold_refuses_grammars_alone(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    long = {"a" * n: n - 1 for n in range(1, 1200)}
    Tokenizer(models.BPE(long, [("a" * n, "a") for n in range(1, 1199)])).save(str(tmp_path / "tokenizer.json"))
    grammars = Grammars(str(tmp_path), 1199, [])
    with pytest.raises(GrammarError, match="tokeniser"):
        grammars.compile(OBJECT).result()


def test_compiled_grammars_are_kept_by_the_length_of_their_text(tmp_path: Path) -> None:
    def kept(grammars: Grammars, length: int) -> bool:
        first = grammars.compile(OBJECT)
        for i in range(20):
            grammars.compile(LLMatcher.grammar_from_lark(f'start: "{i}"' + " " * length)).result()
        return grammars.compile(OBJECT) is first

    shutil.copy(EMBEDDED / "shakespeare" / "tokenizer.json", tmp_path)
    assert kept(Grammars(str(tmp_path), 264, [256]), 10)
    assert not kept(Grammars(str(tmp_path), 264, [256]), 100_000)


def test_a_grammar_that_nobody_waits_for_any_more_is_not_compiled(tmp_path: Path) -> None:
    shutil.copy(EMBEDDED / "shakespeare" / "tokenizer.json", tmp_path)
    grammars = Grammars(str(tmp_path), 264, [256])
    busy = Event()
    grammars._compiler.submit(busy.wait)
    left = [grammars.compile(LLMatcher.grammar_from_regex(f"a{i}")) for i in range(3)]
    for future in left:
        grammars.forget(future)
    busy.set()
    assert all(future.cancelled() for future in left)
    again = grammars.compile(LLMatcher.grammar_from_regex("a2"))
    assert again is not left[-1] and again.result() is not None
