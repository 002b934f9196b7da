"""Requests whose tokens heads or a smaller model guess: alone, mixed, chunked, cached and set back, the text is the same."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from service.engine.assembly import build_engine
from service.engine.loop import Engine
from service.engine.messages import Sampling, Submit, TextWork
from service.engine.validation import InvalidField, procedure_parameters
from service.settings import Settings
from tests.checkpoints import write_decoder
from tests.engine.driving import Outputs, finish_all, text_request, unhurried
from tests.few import few
from tests.heads import write_eagle, write_medusa, write_mtp

KINDS = {"mtp": "heads", "eagle": "heads", "medusa": "heads", "draft_model": "draft_model", "itself": "draft_model"}
SHARED = [(7 * i) % 250 for i in range(70)]


def engine_with(folder: Path, kind: str, options: str = "", **settings: Any) -> Engine:
    model = folder / "text"
    if not model.exists():
        write_decoder(model)
        write_decoder(folder / "draft_model", seed=1)
        for name, writer in (("mtp", write_mtp), ("eagle", write_eagle), ("medusa", write_medusa)):
            writer(folder / name, model)
    place = model if kind == "itself" else folder / kind
    spec = f"text={model},{KINDS[kind]}={place}{options}"
    return build_engine(Settings(**({"models": [spec], "threads": 1, "kv_memory": 1 << 20, "kv_block": 4} | settings)))


def submits() -> list[Submit]:
    """Of several temperatures, with penalties, a grammar and log-probabilities, some of which begin alike."""
    made = [text_request(f"r{i}", i) for i in range(8)]
    made += [
        text_request("penalised", 21, sampling={"temperature": 0.7, "repetition_penalty": 1.3, "presence_penalty": 0.4}),
        text_request("grammar", 22, grammar="start: /(the |a |cat |dog ){12}end/", max_tokens=60),
        text_request("told", 23, logprobs=2),
    ]
    for i in range(3):
        work = TextWork([*SHARED, i], 25, Sampling(temperature=0.5 * i), ignore_eos=True)
        made.append(Submit(f"alike{i}", "text", "autoregressive", {}, 40 + i, work, 0.0))
    return made


def drafted(submit: Submit, kind: str, width: int = 1) -> Submit:
    parameters = {"drafter": KINDS[kind], "draft_tokens": 4, "width": width, "adaptive": False}
    return Submit(submit.id, submit.model, "speculative", parameters, submit.seed, submit.work, submit.arrived)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drafters")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Outputs:
    """Without guesses, which is the same whoever could have made some."""
    outputs = finish_all(engine_with(folder, "mtp"), submits())
    assert not outputs.failed
    return outputs


@pytest.mark.parametrize("kind", few(KINDS, "draft_model", "eagle"))
def test_the_text_is_that_of_plain_decoding_alone_mixed_chunked_cached_and_set_back(
    kind: str, folder: Path, plain: Outputs
) -> None:
    asked = [drafted(submit, kind) for submit in submits()]
    engine = engine_with(folder, kind)
    for turn in ("first", "found in the cache"):
        together = finish_all(engine, asked)
        assert not together.failed and together.tokens == plain.tokens, turn
    assert sum(done.usage.drafted_tokens or 0 for done in together.done.values()) > 0
    assert together.done["alike1"].usage.cached_tokens >= 64
    half = [submit if i % 2 else drafted(submit, kind) for i, submit in enumerate(submits())]
    assert finish_all(engine_with(folder, kind, token_budget=24), half).tokens == plain.tokens


@pytest.mark.parametrize("kind", few(KINDS, "draft_model", "mtp"))
def test_who_is_set_back_in_the_middle_of_a_draft_writes_the_same(kind: str, folder: Path, plain: Outputs) -> None:
    block = {"medusa": 2, "mtp": 3, "eagle": 3, "draft_model": 4, "itself": 4}[kind] * 2 * 4 * 2 * 8 * 4
    tight = engine_with(folder, kind, f",kv_memory={36 * block}")
    together = finish_all(tight, [drafted(submit, kind) for submit in submits()])
    assert not together.failed and together.tokens == plain.tokens
    assert tight.gauges().preemptions["text"] > 0
    assert tight.gauges().kv_blocks["text"][0] == 0


@pytest.mark.parametrize("kind,width", few(itertools.product(("mtp", "medusa", "draft_model"), (2, 4)), ("medusa", 4)))
def test_trees_of_guesses_give_the_text_of_plain_decoding_too(kind: str, width: int, folder: Path, plain: Outputs) -> None:
    mixed = [submit if i % 4 == 3 else drafted(submit, kind, width if i % 4 else 1) for i, submit in enumerate(submits())]
    engine = engine_with(folder, kind, token_budget=48)
    for turn in ("first", "found in the cache"):
        together = finish_all(engine, mixed)
        assert not together.failed and together.tokens == plain.tokens, turn
    block = {"medusa": 2, "mtp": 3, "draft_model": 4}[kind] * 2 * 4 * 2 * 8 * 4
    tight = engine_with(folder, kind, f",kv_memory={36 * block}")
    together = finish_all(tight, [drafted(submit, kind, width) for submit in submits()])
    assert not together.failed and together.tokens == plain.tokens
    assert tight.gauges().preemptions["text"] > 0
    assert sum(done.usage.accepted_tokens or 0 for done in together.done.values()) > 0


def test_a_model_that_drafts_for_itself_is_right_in_every_forward(folder: Path) -> None:
    work = TextWork(list(SHARED), 41, Sampling(temperature=1.0), ignore_eos=True)
    submit = Submit("x", "text", "speculative", {"drafter": "draft_model", "draft_tokens": 4, "adaptive": False}, 3, work, 0.0)
    usage = finish_all(unhurried(engine_with(folder, "itself")), [submit]).done["x"].usage
    assert usage.accepted_tokens == usage.drafted_tokens and (usage.tokens_per_forward or 0) > 3.5


def test_blocks_with_a_drafters_numbers_are_shared_by_its_requests_alone(folder: Path) -> None:
    engine = engine_with(folder, "mtp")
    work = TextWork([*SHARED, 1], 5, ignore_eos=True)
    plain = Submit("plain", "text", "autoregressive", {}, 1, work, 0.0)
    finish_all(engine, [plain])
    first = finish_all(engine, [drafted(plain, "mtp")]).done["plain"].usage
    second = finish_all(engine, [drafted(plain, "mtp")]).done["plain"].usage
    again = finish_all(engine, [plain]).done["plain"].usage
    assert (first.cached_tokens, second.cached_tokens, again.cached_tokens) == (0, 68, 68)


def test_the_card_names_the_drafters_and_others_are_refused(folder: Path) -> None:
    card = engine_with(folder, "eagle").models["text"].card
    assert card.drafters == ["ngram", "mask", "heads"]
    with pytest.raises(InvalidField, match="text has no drafter draft_model; it has: ngram, mask, heads"):
        procedure_parameters(card, {"name": "speculative", "drafter": "draft_model"})


@pytest.mark.parametrize("length", few([160, 400], 160))
def test_a_second_guess_at_every_place_makes_longer_runs(length: int) -> None:
    engine = unhurried(build_engine(Settings(models=["shakespeare"], threads=1, kv_memory=8 << 20)))
    work = TextWork(list(b"ROMEO:\n"), length, Sampling(temperature=1.0))
    forwards = []
    for width in (1, 2, 4):
        parameters = {"drafter": "heads", "draft_tokens": 4, "width": width, "adaptive": False}
        asked = [Submit(f"{i}", "shakespeare", "speculative", parameters, i, work, 0.0) for i in range(4)]
        forwards.append(sum(done.usage.forwards or 0 for done in finish_all(engine, asked).done.values()))
    assert forwards[1] < 0.97 * forwards[0] and forwards[2] < forwards[1]


@pytest.mark.parametrize("temperature", few([0.0, 0.8, 1.0], 0.8))
def test_shakespeare_drafts_with_its_own_module_for_more_than_two_tokens_a_forward(temperature: float) -> None:
    engine = unhurried(build_engine(Settings(models=["shakespeare"], threads=1, kv_memory=8 << 20)))
    prompts = (b"ROMEO:\nWhat ", b"KING HENRY:\n", b"The ")
    works = [TextWork(list(prompt), 96, Sampling(temperature=temperature)) for prompt in prompts]
    plain = [Submit(f"{i}", "shakespeare", "autoregressive", {}, i, work, 0.0) for i, work in enumerate(works)]
    parameters = {"drafter": "heads", "draft_tokens": 6, "adaptive": False}
    asked = [Submit(s.id, s.model, "speculative", parameters, s.seed, s.work, 0.0) for s in plain]
    outputs = finish_all(engine, asked)
    assert outputs.tokens == finish_all(engine, plain).tokens
    assert all((done.usage.tokens_per_forward or 0) > 2.0 for done in outputs.done.values())
