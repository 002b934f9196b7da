"""An engine whose model is divided among two processes writes what an engine that has it whole writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from service.engine.assembly import build_engine
from service.engine.loop import Engine
from service.engine.messages import Submit
from service.settings import Settings
from service.workers.ranks import LedForward
from tests.checkpoints import write_decoder
from tests.engine.driving import finish_all, finish_all_set_back, text_request


@dataclass(frozen=True)
class Engines:
    whole: Engine
    divided: Engine


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    folder = tmp_path_factory.mktemp("divided")
    text = f"text={write_decoder(folder / 'text')},draft_model={write_decoder(folder / 'draft', seed=1)}"
    settings = {"threads": 1, "kv_memory": 1 << 20, "token_budget": 48}
    divided = build_engine(Settings.model_validate({**settings, "models": [f"{text},tensor_parallel=2"]}))
    yield Engines(build_engine(Settings.model_validate({**settings, "models": [text]})), divided)
    forward = divided.models["text"].worker._forward  # type: ignore[union-attr]
    assert isinstance(forward, LedForward)
    forward.ranks.close()


def requests() -> list[Submit]:
    return [
        text_request("greedy", 3, prompt_length=70),
        text_request("again", 3, prompt_length=70, max_tokens=5),
        text_request("sampled", 4),
        text_request("canvases", 5, "block_diffusion", parameters={"block_length": 8, "threshold": 0.3}),
        text_request("masked again", 7, "block_diffusion", parameters={"rule": "remask", "steps": 6, "eta": 0.3}),
        text_request("guessed by its text", 6, "speculative", parameters={"drafter": "ngram"}),
        text_request("guessed by masks", 9, "speculative", parameters={"drafter": "mask", "draft_tokens": 3}),
        text_request("guessed by a model", 12, "speculative", parameters={"drafter": "draft_model", "width": 2}),
        text_request("read", 8, logprobs=2),
    ]


def test_texts_of_every_kind_are_the_same_together_cached_and_set_back(engines: Engines) -> None:
    submits = requests()
    expected = finish_all(engines.whole, submits).tokens
    assert len({tuple(tokens) for tokens in expected.values()}) >= len(submits) - 1
    fresh = finish_all(engines.divided, submits)
    assert not fresh.failed and fresh.tokens == expected
    cached = finish_all(engines.divided, submits)
    assert cached.tokens == expected
    assert all(done.usage.cached_tokens > 0 for done in cached.done.values() if done.usage.prompt_tokens > 16)
    lane = engines.divided.scheduler.lanes["text"]
    back = finish_all_set_back(engines.divided, submits, lane)
    assert back.tokens == expected and lane.preemptions > 0
    engines.divided.scheduler.check_books()


def test_texts_are_the_same_where_forwards_overlap(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that only the first rank's device has is told to the others there."""
    submits, forward, told = requests(), engines.divided.models["text"].worker._forward, list[int]()  # type: ignore[union-attr]
    embed = forward.embed
    monkeypatch.setattr(forward, "embed", lambda tokens: told.append(len(tokens)) or embed(tokens))
    overlapping = Engine(list(engines.divided.models.values()), overlap=True)
    expected = finish_all(engines.whole, submits).tokens
    assert finish_all(overlapping, submits).tokens == expected
    plain = finish_all(overlapping, [submits[0], submits[2]])
    assert sum(told) > 10 and all(plain.tokens[name] == expected[name] for name in ("greedy", "sampled"))


def test_its_card_is_that_of_the_whole(engines: Engines) -> None:
    whole, divided = (engine.models["text"].card for engine in (engines.whole, engines.divided))
    assert divided.parameters_count == whole.parameters_count and divided.vocab_size == whole.vocab_size
    assert divided.drafters == whole.drafters == ["ngram", "mask", "draft_model"]
