"""The rows of verified drafting, without a network."""

from __future__ import annotations

import random

import msgspec
import pytest

from service.procedures.drafts import comb
from service.procedures.prompt_lookup import PromptLookup
from service.procedures.speculative import Speculative, SpeculativeParameters
from service.procedures.types import Draft, Reading, TokenState


def test_the_text_behind_the_last_occurrence_of_the_longest_run_is_guessed() -> None:
    text = [1, 2, 3, 9, 8, 7, 2, 3, 5, 5, 1, 2, 3]
    assert PromptLookup(1, 3).guess(text, 3) == Draft.chain((9, 8, 7)), "three alike beat two"
    assert PromptLookup(1, 2).guess(text, 3) == Draft.chain((5, 5, 1)), "the last of those with two"
    assert PromptLookup(2, 3).guess([1, 2, 3, 4, 1], 3).tokens == (), "one alike is too few"
    assert PromptLookup(1, 3).guess([4, 1, 2, 1, 2], 5).tokens == (1, 2, 1, 2, 1), "a loop is continued"
    assert PromptLookup(1, 3).guess([], 5).tokens == () == PromptLookup(1, 3).guess([4], 5).tokens


def test_several_branches_are_what_followed_the_last_times_and_begin_with_different_tokens() -> None:
    text = [1, 2, 3, 9, 1, 2, 3, 8, 3, 7, 1, 2, 3, 9, 4, 1, 2, 3]
    for width, tokens in ((1, (9, 4)), (2, (9, 4, 8, 3)), (3, (9, 4, 8, 3, 7, 1)), (4, (9, 4, 8, 3, 7, 1))):
        found = PromptLookup(1, 3, width).guess(text, 2)
        assert found.tokens == tokens, "those behind three alike come first, and each token once"
        assert found.parents == (-1, 0, -1, 2, -1, 4)[: len(tokens)]
    assert PromptLookup(1, 3, 2).guess([5, 5, 1, 5], 3) == Draft((1, 5, 1, 5, 1, 5), (-1, 0, 1, -1, 3, 4))


def test_a_lookup_that_grows_says_what_one_over_the_whole_text_says() -> None:
    rng = random.Random(3)
    tokens: list[int] = []
    growing = PromptLookup(2, 4)
    for _ in range(300):
        tokens += [rng.randrange(3) for _ in range(rng.randrange(1, 4))]
        found = growing.guess(tokens, 6).tokens
        assert found == PromptLookup(2, 4).guess(tokens, 6).tokens
        for length in (4, 3, 2):
            ends = [stop for stop in range(length, len(tokens)) if tokens[stop - length : stop] == tokens[-length:]]
            if ends:
                assert found[: len(tokens) - ends[-1]] == tuple(tokens[ends[-1] : ends[-1] + 6])
                break
        else:
            assert found == ()


def state(tokens: list[int], room: int, cached: int = 0) -> TokenState:
    return TokenState(tokens, 2, len(tokens) + room, cached=cached)


def test_guesses_ride_behind_what_the_cache_lacks_and_every_one_is_read() -> None:
    procedure = Speculative(SpeculativeParameters(draft_tokens=3, ngram_min=1))
    now = state([5, 6, 7, 5], 10, cached=3)
    (row,) = procedure.propose(now)
    assert (row.tokens, row.start, row.wanted, row.drafts, row.keep) == ((5, 6, 7, 5), 3, (0, 1, 2, 3), 3, True)
    assert procedure.propose(now) == [row], "what did not run is proposed again"
    procedure.fold(now, [Reading(6, 1.0), Reading(7, 1.0), Reading(9, 1.0), Reading(4, 1.0)])
    assert now.tokens == [5, 6, 7, 5, 6, 7, 9]


def test_a_move_whose_last_guesses_were_cut_is_folded_as_far_as_it_ran() -> None:
    procedure = Speculative(SpeculativeParameters(draft_tokens=3, ngram_min=1))
    now = state([5, 6, 7, 5], 10, cached=3)
    procedure.propose(now)
    procedure.fold(now, [Reading(6, 1.0), Reading(7, 1.0)])
    assert now.tokens == [5, 6, 7, 5, 6, 7]


def test_no_more_is_guessed_than_there_is_room_for() -> None:
    procedure = Speculative(SpeculativeParameters(draft_tokens=8, ngram_min=1))
    for room, drafts in ((1, 0), (2, 1), (5, 4), (50, 8)):
        (row,) = procedure.propose(state([5, 5, 5], room))
        assert row.drafts == drafts == procedure.scratch(room)
        waiting = state([5, 6, 7], room)
        waiting.draft = Draft.chain((1,) * 20)
        assert procedure.propose(waiting)[0].drafts == drafts


def test_parameters_fill_in_what_follows_and_refuse_what_cannot_be() -> None:
    assert (SpeculativeParameters().ngram_min, SpeculativeParameters().ngram_max) == (2, 4)
    assert SpeculativeParameters(ngram_min=6).ngram_max == 6 and SpeculativeParameters(ngram_max=1).ngram_min == 1
    again = msgspec.convert(msgspec.to_builtins(SpeculativeParameters(ngram_max=3)), SpeculativeParameters)
    assert again == SpeculativeParameters(ngram_max=3)
    with pytest.raises(ValueError, match="ngram_max"):
        SpeculativeParameters(ngram_min=4, ngram_max=3)
    for wrong in ({"draft_tokens": 0}, {"draft_tokens": 33}, {"drafter": "oracle"}, {"ngram_min": 0}, {"width": 5}, {"width": 0}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, SpeculativeParameters)
    for wrong, name in (({"drafter": "mask", "width": 2}, "width"), ({"draft_tokens": 32, "width": 2}, "width")):
        with pytest.raises(msgspec.ValidationError, match=name):
            msgspec.convert(wrong, SpeculativeParameters)


def test_a_tree_is_one_row_and_the_branch_that_was_drawn_is_committed() -> None:
    procedure = Speculative(SpeculativeParameters(drafter="heads", draft_tokens=3, width=2))
    now = state([5, 6, 7], 10, cached=2)
    now.draft = comb((1, 2, 3), [(11,), (12,), (13,)])
    (row,) = procedure.propose(now)
    assert (row.mode, row.start, row.tokens, row.drafts) == ("tree", 2, (7, 1, 2, 3, 11, 12, 13), 6)
    assert row.depths == (0, 1, 2, 3, 1, 2, 3) and row.draft() == now.draft and procedure.propose(now) == [row]
    assert len(row.tokens) - 1 == procedure.scratch(10)
    procedure.fold(now, [Reading(token, 1.0) for token in (1, 12, 0, 0, 0, 9, 0)])
    assert now.tokens == [5, 6, 7, 1, 12, 9]
    now.limit, now.cached = len(now.tokens) + 3, 5
    now.draft = comb((1, 2, 3), [(11,), (12,), (13,)])
    assert procedure.propose(now)[0].draft() == Draft.chain((1, 2)), "neither a branch nor a place is beyond the limit"
    now.limit, now.draft = len(now.tokens) + 4, comb((1, 2), [(11, 21), (12,)])
    assert procedure.propose(now)[0].draft() == comb((1, 2), [(11,)])
