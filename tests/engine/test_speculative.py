"""Verified drafting changes no token: greedy or sampled, under every limit, whatever is guessed and whoever shares a forward."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLParserLimits

from service.engine import grammar
from service.engine.lane import Limits
from service.engine.messages import Finish, FromEngine, Sampling, Submit, TextWork, Tokens
from service.engine.moves import fit
from service.engine.request import TextRequest
from service.procedures.drafts import comb
from service.procedures.types import Draft, TokenRow
from tests.engine.driving import UNLIMITED, Outputs, engine_on, finish_all, image_request, text_request, unhurried
from tests.engine.guessing import branching, install, oracle
from tests.engine.reading_worker import CARD, VOCABULARY, reading_engine
from tests.few import few

SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0},
    "filtered": {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    "penalised": {"temperature": 0.7, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    "biased": {"temperature": 1.0, "logit_bias": {65: 6.0, 66: -100.0}},
}
GRAMMAR = "start: /(the |a |cat |dog |sat ){12}end/"
WORK: dict[str, dict[str, Any]] = {
    "sampled": {},
    "logprobs": {"logprobs": 3},
    "stops": {"stop_token_ids": list(range(40, 64)), "min_tokens": 9},
    "grammar": {"grammar": GRAMMAR, "max_tokens": 80},
    "grammar-penalised": {"grammar": GRAMMAR, "max_tokens": 80, "sampling": SAMPLING["penalised"], "logprobs": 2},
}


class Recorded(Outputs):
    """Log-probabilities too."""

    def __init__(self) -> None:
        super().__init__()
        self.logprobs: dict[str, list[Any]] = {}

    def take(self, events: list[FromEngine]) -> None:
        super().take(events)
        for event in events:
            if isinstance(event, Tokens):
                self.logprobs.setdefault(event.id, []).extend(event.logprobs)


def pairs(count: int, **options: Any) -> list[Submit]:
    return [text_request(f"r{i}", i, **{"sampling": SAMPLING["plain"]} | options) for i in range(count)]


def speculative(submit: Submit, **parameters: Any) -> Submit:
    return replace_procedure(submit, "speculative", {"draft_tokens": 6, "ngram_min": 1, "adaptive": False} | parameters)


def replace_procedure(submit: Submit, procedure: str, parameters: dict[str, Any]) -> Submit:
    return Submit(submit.id, submit.model, procedure, parameters, submit.seed, submit.work, submit.arrived)


def texts(submits: list[Submit], outputs: Outputs) -> list[list[int]]:
    return [list(s.work.prompt) + outputs.tokens[s.id] for s in submits if isinstance(s.work, TextWork)]


CASES = (*SAMPLING, *WORK)
NEVER_RIGHT = [("plain", 0.0), ("grammar-penalised", 0.0)]


@pytest.mark.parametrize(
    "case,right",
    few(
        itertools.product(CASES, (1.0, 0.6, 0.0)),
        *((case, 0.6) for case in CASES if case not in ("plain", "filtered", "sampled")), *NEVER_RIGHT, ("filtered", 1.0),
    ),
)  # fmt: skip
def test_the_same_text_comes_with_any_guesses(
    case: str, right: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"sampling": SAMPLING[case]} if case in SAMPLING else WORK[case]
    submits = pairs(6, **options)
    plain = finish_all(engine_on(tmp_path), submits, Recorded())
    install(monkeypatch, oracle(texts(submits, plain), right, 264))
    drafted = finish_all(unhurried(engine_on(tmp_path)), [speculative(s) for s in submits], Recorded())
    assert not drafted.failed and drafted.tokens == plain.tokens
    for submit in submits:
        one, other = plain.done[submit.id], drafted.done[submit.id]
        assert one.finish_reason == other.finish_reason
        usage = other.usage
        assert usage.drafted_tokens is not None and usage.accepted_tokens is not None
        assert usage.accepted_tokens <= usage.drafted_tokens
        assert usage.drafted_tokens > 0 or (right == 0.0 and "grammar" in case), "only a grammar refuses guesses by itself"
        assert one.usage.drafted_tokens is None, "nothing is drafted by autoregressive"
        if right == 1.0:
            assert (usage.tokens_per_forward or 0) > 1.5
    if case == "logprobs":
        for submit in submits:
            told = [(entry.own, entry.top) for entry in drafted.logprobs[submit.id]]
            assert len(told) == len(plain.tokens[submit.id])
            for (own, top), expected in zip(told, plain.logprobs[submit.id], strict=True):
                assert own == pytest.approx(expected.own, abs=1e-4)
                assert [token for token, _ in top] == [token for token, _ in expected.top]


OFTEN_IN_TREES = ("filtered", "stops", "grammar-penalised")


@pytest.mark.parametrize(
    "case,right",
    few(itertools.product(CASES, (1.0, 0.5)), *((case, 0.5) for case in OFTEN_IN_TREES), ("logprobs", 1.0)),
)
def test_the_same_text_comes_with_any_tree_of_guesses(
    case: str, right: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"sampling": SAMPLING[case]} if case in SAMPLING else WORK[case]
    submits = pairs(6, **options)
    plain = finish_all(engine_on(tmp_path), submits, Recorded())
    written = texts(submits, plain)
    install(monkeypatch, branching(oracle(written, right, 264), {token for text in written for token in text[-20:]}, 24))
    trees = [speculative(s, width=4) if i % 3 else s for i, s in enumerate(submits)]
    drafted = finish_all(unhurried(engine_on(tmp_path)), trees, Recorded())
    assert not drafted.failed and drafted.tokens == plain.tokens
    for submit in submits[1:3]:
        usage = drafted.done[submit.id].usage
        assert plain.done[submit.id].finish_reason == drafted.done[submit.id].finish_reason
        assert 0 < (usage.accepted_tokens or 0) < (usage.drafted_tokens or 0), "what was beside them was verified too"
        assert right < 1.0 or (usage.tokens_per_forward or 0) > 1.5
    if case in ("logprobs", "grammar-penalised"):
        for submit in submits:
            told = [entry.own for entry in drafted.logprobs[submit.id]]
            assert told == pytest.approx([entry.own for entry in plain.logprobs[submit.id]], abs=1e-4)


@pytest.mark.parametrize("width", [1, 4])
def test_a_grammar_that_grows_beyond_its_bounds_over_guesses_ends_its_own_request_alone(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "LIMITS", LLParserLimits(max_lexer_states=60, verbose_errors=False))
    submits = pairs(2, max_tokens=60)
    plain = finish_all(engine_on(tmp_path), submits)
    install(monkeypatch, lambda tokens, count: tuple(random.Random(len(tokens)).choices(b"ab", k=count)))
    hostile = text_request("hostile", 9, grammar="start: /[ab]*a[ab]{40}c/", max_tokens=300)
    engine = engine_on(tmp_path)
    together = finish_all(engine, [*submits, speculative(hostile, width=width)])
    failed = together.failed["hostile"]
    assert (failed.status, failed.code) == (400, "grammar_failed")
    again = text_request("again", 9, grammar="start: /[ab]*a[ab]{40}c/", max_tokens=3)
    assert finish_all(engine, [again]).done["again"].finish_reason == "length", "it did not outgrow the grammar"
    assert all(together.tokens[s.id] == plain.tokens[s.id] for s in submits)


def test_a_grammar_that_gives_out_behind_a_guess_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gives_out(following: grammar.Following, draft: Draft) -> list[bytes]:
        raise grammar.GrammarError("too many states")

    monkeypatch.setattr(grammar.Following, "allowed_behind", gives_out)
    failed = finish_all(engine_on(tmp_path), [speculative(s, width=2) for s in pairs(1, grammar=GRAMMAR)]).failed["r0"]
    assert (failed.status, failed.code) == (400, "grammar_failed") and "too many states" in failed.message


def test_guesses_that_have_no_room_are_dropped_before_what_must_be_computed_is_cut() -> None:
    work = TextWork([1, 2, 3, 4, 5, 6] * 3, 50)
    submit = Submit("text", "text", "speculative", {"draft_tokens": 8}, 0, work, 0.0)
    request = TextRequest.begin(submit, work, CARD, 16)
    rows = request.propose()
    whole, part = fit(request, rows, 20, alone=True), fit(request, rows, 12, alone=True)
    assert whole is not None and whole.whole and isinstance(whole.rows[0], TokenRow)
    assert (len(whole.rows[0].tokens), whole.rows[0].drafts, whole.size) == (20, 2, 20)
    assert part is not None and not part.whole and isinstance(part.rows[0], TokenRow)
    assert (part.rows[0].tokens, part.rows[0].drafts) == (tuple(work.prompt[:12]), 0)


def test_trees_in_forwards_with_others_and_set_back_change_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submits = pairs(24, sampling=SAMPLING["filtered"], max_tokens=200, prompt_length=60)
    plain = finish_all(engine_on(tmp_path), submits)
    install(monkeypatch, branching(oracle(texts(submits, plain), 0.8, 264), range(264), 24))
    mixed = [speculative(s, width=4 if i % 3 == 1 else 1) if i % 3 else s for i, s in enumerate(submits)]
    long = [text_request(f"long{i}", 50 + i, prompt_length=200) for i in range(2)]
    engine = engine_on(tmp_path, token_budget=256)
    together = finish_all(engine, [*mixed, *long, image_request("image", 1)])
    assert engine.scheduler.lanes["text"].preemptions > 0
    for submit in submits:
        assert together.tokens[submit.id] == plain.tokens[submit.id]


def test_alone_and_in_forwards_with_plain_rows_prefills_and_canvases_the_text_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = pairs(12, sampling=SAMPLING["filtered"])
    plain = finish_all(engine_on(tmp_path), mixed)
    install(monkeypatch, oracle(texts(mixed, plain), 0.7, 264))
    kinds = [
        speculative(s) if i % 3 == 0
        else replace_procedure(s, "block_diffusion", {"block_length": 8, "threshold": 0.3}) if i % 3 == 1 else s
        for i, s in enumerate(mixed)
    ]  # fmt: skip
    long = [text_request(f"long{i}", 50 + i, prompt_length=200) for i in range(3)]
    pictures = [image_request(f"image{i}", i) for i in range(2)]
    alone = [finish_all(engine_on(tmp_path), [kinds[i]]) for i in range(0, 12, 3)]
    together = finish_all(engine_on(tmp_path, token_budget=48), [*kinds, *long, *pictures])
    for i, only in zip(range(0, 12, 3), alone, strict=True):
        assert together.tokens[f"r{i}"] == only.tokens[f"r{i}"] == plain.tokens[f"r{i}"]
    for i in range(2, 12, 3):
        assert together.tokens[f"r{i}"] == plain.tokens[f"r{i}"], "who shares a forward with guesses notices nothing"
    assert sum(tick.drafted_tokens for tick in together.ticks) > sum(tick.accepted_tokens for tick in together.ticks) > 0


def test_the_ngram_drafter_speeds_up_a_text_that_repeats_itself_and_changes_nothing(tmp_path: Path) -> None:
    words = Sampling(temperature=0.0, logit_bias={65: 90.0, 66: 60.0}, frequency_penalty=0.0)
    work = TextWork([10, 20, 30] * 5, 60, words, ignore_eos=True)
    plain = Submit("r", "text", "autoregressive", {}, 1, work, 0.0)
    one = finish_all(engine_on(tmp_path), [plain])
    other = finish_all(unhurried(engine_on(tmp_path)), [replace_procedure(plain, "speculative", {"adaptive": False})])
    assert one.tokens == other.tokens
    assert (other.done["r"].usage.tokens_per_forward or 0) > 2.0 and (one.done["r"].usage.tokens_per_forward or 0) <= 1.0


def reading_submits(count: int) -> list[Submit]:
    rng = random.Random(count)
    out = []
    for i in range(count):
        work = TextWork([rng.randrange(1, VOCABULARY) for _ in range(rng.randrange(1, 30))], rng.randrange(1, 25))
        out.append(Submit(f"r{i}", "text", "autoregressive", {}, i, work, 0.0, priority=rng.randrange(2)))
    return out


SMALL, NARROW, WIDE = Limits(8, 32, 16), Limits(3, 16, 8), Limits(8, 64, 16)
GUESSES = ((0.8, 1), (0.2, 1), (0.8, 3))


@pytest.mark.parametrize(
    "right,width,blocks,limits",
    few(
        [(*guesses, blocks, limits) for guesses in GUESSES for blocks in (14, 40) for limits in (SMALL, NARROW, WIDE)],
        (0.8, 1, 14, SMALL), (0.2, 1, 14, WIDE), (0.8, 3, 14, NARROW), (0.8, 3, 40, WIDE),
    ),
)  # fmt: skip
def test_a_storm_of_guesses_in_tight_memory_with_leavers_loses_and_leaks_nothing(
    right: float, width: int, blocks: int, limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    submits = reading_submits(40)
    plain = finish_all(reading_engine(400), submits)
    guess = oracle(texts(submits, plain), right, VOCABULARY)
    install(monkeypatch, guess if width == 1 else branching(guess, range(1, VOCABULARY), 6 * width))
    engine = reading_engine(blocks, limits=limits)
    outputs, rng = Outputs(), random.Random(blocks)
    for submit in submits:
        outputs.take(engine.take(speculative(submit, width=width) if rng.random() < 0.8 else submit))
    leavers = set(rng.sample([s.id for s in submits], 10))
    for _ in range(20_000):
        if not engine.has_work:
            break
        outputs.take(engine.tick())
        engine.scheduler.check_books()
        if leavers and rng.random() < 0.3:
            outputs.take(engine.take(Finish(leavers.pop())))
    assert not engine.has_work and not outputs.failed and set(outputs.done) == {s.id for s in submits}
    assert all(lane.pool.used == 0 for lane in engine.scheduler.lanes.values()), "nothing is held at the end"
    if blocks == 14 and (width == 1 or limits.tokens < 64):
        assert sum(lane.preemptions for lane in engine.scheduler.lanes.values()) > 0, "the storm was to set back some"
    for submit in submits:
        whole = outputs.done[submit.id].finish_reason != "cancelled"
        expected = plain.tokens[submit.id]
        assert outputs.tokens[submit.id] == (expected if whole else expected[: len(outputs.tokens[submit.id])])


def test_a_request_that_fits_exactly_fits_with_guesses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    work = TextWork([1, 2, 3, 4], 12)
    submit = Submit("r", "text", "autoregressive", {}, 5, work, 0.0)
    plain = finish_all(reading_engine(4), [submit])
    guess = oracle(texts([submit], plain), 1.0, VOCABULARY)
    for width, guessed in ((1, guess), (4, branching(guess, range(1, VOCABULARY), 60))):
        install(monkeypatch, guessed)
        drafted = finish_all(reading_engine(4), [speculative(submit, draft_tokens=32 if width == 1 else 15, width=width)])
        assert drafted.tokens == plain.tokens and drafted.done["r"].finish_reason == "length"


def test_where_not_all_guesses_of_a_tree_have_room_those_that_gain_most_are_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    work = TextWork([1, 2, 3, 4], 400)
    submit = Submit("r", "text", "autoregressive", {}, 5, work, 0.0)
    plain = finish_all(reading_engine(200), [submit])
    right, rng = oracle(texts([submit], plain), 1.0, VOCABULARY), random.Random(1)

    def first_or_second(tokens: Sequence[int], count: int) -> Draft:
        """Of the first and the second at every place one is right, as chance wants it."""
        known = right(tokens, count)
        assert not isinstance(known, Draft)
        pairs = [rng.sample((token, 1 + token % (VOCABULARY - 1)), 2) for token in known]
        return comb([first for first, _ in pairs], [[second] for _, second in pairs])

    install(monkeypatch, first_or_second)
    drafted = finish_all(reading_engine(200, limits=Limits(8, 8, 16, UNLIMITED)), [speculative(submit, width=2, adaptive=False)])
    assert drafted.tokens == plain.tokens
    # Six in a chain and one beside the first would be 1 + (1/2 + 1/4 + ...) + 1/2; the best seven of the tree are a quarter more.
    assert (drafted.done["r"].usage.tokens_per_forward or 0) > 2.6


def test_guesses_that_the_next_tokens_cannot_be_are_not_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submits = pairs(2, grammar=GRAMMAR, max_tokens=30)
    install(monkeypatch, lambda tokens, count: tuple(b"!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!"[:count]))
    drafted = finish_all(engine_on(tmp_path), [speculative(s) for s in submits])
    assert [drafted.done[s.id].usage.drafted_tokens for s in submits] == [0, 0]
