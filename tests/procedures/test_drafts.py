"""Guesses: how far they were right, and rows that carry them."""

from __future__ import annotations

from service.procedures.drafts import accepted, branch, comb, deepest, pruned, reordered, within
from service.procedures.types import Axis, Draft, TokenRow


def test_guesses_are_accepted_while_they_equal_the_draws_before_them() -> None:
    chain = Draft.chain((5, 6, 7))
    assert accepted(chain, [5, 6, 7, 8]) == (0, 1, 2)
    assert accepted(chain, [5, 6, 1, 7]) == (0, 1)
    assert accepted(chain, [1, 6, 7, 8]) == (), "nothing counts behind the first guess that was wrong"
    assert accepted(Draft.chain(()), [5]) == ()


def test_of_a_tree_the_branch_that_was_drawn_is_followed() -> None:
    tree = Draft((5, 9, 6, 7, 8), (-1, -1, 0, 1, 3))
    assert accepted(tree, [9, 0, 7, 0, 8, 3]) == (1, 3, 4)
    assert accepted(tree, [5, 6, 0, 0, 0, 0]) == (0, 2)
    assert accepted(tree, [5, 7, 6, 8, 0, 0]) == (0,), "a guess of another branch does not count"


def test_a_tree_is_pruned_with_all_behind_a_guess_and_cut_at_a_depth() -> None:
    tree = comb((1, 2, 3), [(11,), (12, 22), ()])
    assert tree == Draft((1, 2, 3, 11, 12, 22), (-1, 0, 1, -1, 0, 0)) and deepest(tree) == 3
    assert [branch(tree, at) for at in (-1, 2, 3, 5)] == [(), (0, 1, 2), (3,), (0, 5)]
    assert within(tree, 2) == Draft((1, 2, 11, 12, 22), (-1, 0, -1, 0, 0)) and within(tree, 3) == tree
    assert pruned(tree, [True, False, True, True, True, True]) == Draft((1, 11, 12, 22), (-1, -1, 0, 0))
    assert pruned(tree, [False] + [True] * 5) == Draft((11,), (-1,))
    assert reordered(tree, [3, 0, 4, 1]) == Draft((11, 1, 12, 2), (-1, -1, 1, 1))


def test_a_row_gives_up_its_last_guesses_first_and_stays_whole() -> None:
    row = TokenRow(Axis.EXPAND, (1, 2, 5, 6, 7), 10, "causal", True, (1, 2, 3, 4), drafts=3)
    assert row.draft() == Draft.chain((5, 6, 7))
    cut = row.with_drafts(1)
    assert (cut.tokens, cut.wanted, cut.drafts) == ((1, 2, 5), (1, 2), 1)
    assert row.with_drafts(0).wanted == (1,) and row.with_drafts(9) is row
    assert row.head(1).drafts == 0 and row.head(1).wanted == ()
