"""Log-probabilities of prompts: each told once and as the request alone would be told, whatever memory does. No network."""

from __future__ import annotations

import random
from functools import lru_cache

from service.engine.lane import Limits
from service.engine.messages import Submit, TextWork
from service.engine.request import TextRequest
from tests.engine.driving import Outputs, finish_all
from tests.engine.reading_worker import VOCABULARY, reading_engine


def prompt(length: int, family: int = 0) -> list[int]:
    """Prompts of a family begin alike."""
    rng = random.Random(family)
    return [rng.randrange(1, VOCABULARY) for _ in range(length)]


def ask(name: str, tokens: list[int], max_tokens: int, score: bool = True, stops: tuple[int, ...] = ()) -> Submit:
    work = TextWork(tokens, max_tokens, stop_token_ids=list(stops), logprobs=0 if score else None, score_prompt=score)
    return Submit(name, "text", "autoregressive", {}, 7, work, 0.0)


@lru_cache(maxsize=10_000)
def alone(tokens: tuple[int, ...], max_tokens: int, score: bool) -> tuple[list[int], list[tuple[int, float]]]:
    engine = reading_engine(400, prefix_cache=False, limits=Limits(8, 10_000, 1))
    outputs = finish_all(engine, [ask("alone", list(tokens), max_tokens, score)])
    return outputs.tokens["alone"], outputs.scores["alone"]


def check(outputs: Outputs, submits: list[Submit]) -> None:
    for submit in submits:
        assert isinstance(submit.work, TextWork)
        work = submit.work
        tokens, scores = alone(tuple(work.prompt), work.max_tokens, work.score_prompt)
        assert (outputs.tokens[submit.id], outputs.scores[submit.id]) == (tokens, scores)
        assert [token for token, _ in scores] == (work.prompt[1:] if work.score_prompt else [])
        assert outputs.done[submit.id].finish_reason == "length"


def test_a_prompt_in_chunks_is_scored_as_in_one_forward() -> None:
    for tokens in (3, 7, 16, 64):
        submits = [ask(f"r{i}", prompt(20 + 9 * i, i), i % 3) for i in range(4)]
        check(finish_all(reading_engine(100, limits=Limits(8, tokens, 16)), submits), submits)


def test_what_others_computed_does_not_stand_in_for_what_is_owed_and_serves_others_afterwards() -> None:
    engine = reading_engine(100)
    first = [ask("plain", prompt(41), 2, score=False)]
    check(finish_all(engine, first), first)
    scored = [ask("scored", prompt(41), 2), ask("beside", prompt(41), 2, score=False)]
    outputs = finish_all(engine, scored)
    check(outputs, scored)
    assert outputs.done["scored"].usage.cached_tokens == 0 and outputs.done["beside"].usage.cached_tokens == 40
    other = reading_engine(100)
    finish_all(other, [ask("scored", prompt(41), 0)])
    again = finish_all(other, [ask("plain", prompt(41), 2, score=False)])
    assert again.done["plain"].usage.cached_tokens == 40


def test_a_request_that_is_set_back_tells_nothing_twice_and_shares_what_it_told() -> None:
    # Those that came first grow into the memory of those whose prompts take many forwards.
    engine, outputs = reading_engine(20, limits=Limits(8, 8, 16)), Outputs()
    submits = [ask(f"plain{i}", prompt(5, i), 40 - 5 * i, score=False) for i in range(3)]
    submits += [ask(f"scored{i}", prompt(40 + i, 9), 4 * i) for i in range(3)]
    for submit in submits:
        outputs.take(engine.take(submit))
    interrupted = 0
    while engine.has_work:
        outputs.take(engine.tick())
        engine.scheduler.check_books()
        waiting = [r for r in engine.scheduler.requests.values() if isinstance(r, TextRequest) and not r.table.blocks]
        interrupted += sum(1 for r in waiting if r.scoring is not None and 0 < r.scoring.told < r.scoring.owed)
    assert interrupted, "somebody is set back in the middle of its prompt"
    check(outputs, submits)


def test_where_nothing_is_to_be_computed_the_request_ends_at_once() -> None:
    engine = reading_engine(10)
    submits = [ask("one token", [3], 0), ask("not scored", prompt(9), 0, score=False)]
    outputs = finish_all(engine, submits)
    assert {name: done.finish_reason for name, done in outputs.done.items()} == {"one token": "length", "not scored": "length"}
    assert not outputs.tokens and not outputs.scores and not engine.models["text"].worker.computed
    assert outputs.done["not scored"].usage.prompt_tokens == 9


def test_the_token_that_ended_a_scored_text_is_told_with_the_scores() -> None:
    drawn, _ = alone(tuple(prompt(9)), 1, True)
    outputs = finish_all(reading_engine(10), [ask("x", prompt(9), 5, stops=(drawn[0],))])
    assert not outputs.tokens["x"] and outputs.done["x"].finish_reason == "stop"
    assert [token for token, _ in outputs.scores["x"]] == [*prompt(9)[1:], drawn[0]]


def test_nothing_but_the_next_tokens_distribution_scores_a_prompt() -> None:
    work = TextWork(prompt(9), 8, score_prompt=True)
    outputs = finish_all(reading_engine(10), [Submit("x", "text", "block_diffusion", {"block_length": 4}, 7, work, 0.0)])
    assert outputs.failed["x"].status == 400 and not outputs.done
