"""How many guesses a forward verifies."""

from __future__ import annotations

from service.engine.cost import ForwardCost
from service.engine.drafting import PROBE_FORWARDS, Acceptance, Trial, allot
from service.procedures.drafts import comb
from service.procedures.types import Draft

GOOD = [0.8**depth for depth in range(1, 9)]
BAD = [0.05**depth for depth in range(1, 9)]


def chain(count: int) -> Draft:
    return Draft.chain((0,) * count)


def test_alone_and_cheap_many_are_verified_and_fewer_the_dearer_a_token_is() -> None:
    counts = [allot((1.0, slope), 1, 1, 100, [GOOD])[0] for slope in (0.0, 0.02, 0.1, 0.3, 10.0)]
    assert counts[0] == counts[1] == 8 and counts == sorted(counts, reverse=True) and counts[-1] == 0


def test_a_batch_whose_cost_is_linear_in_its_tokens_verifies_none() -> None:
    assert allot((0.0, 1.0), 64, 64, 1000, [GOOD] * 64) == [0] * 64
    assert allot((0.5, 1.0), 64, 64, 1000, [GOOD] * 64) == [0] * 64


def test_whoever_guesses_better_is_given_more() -> None:
    many, few = allot((1.0, 0.05), 2, 2, 100, [GOOD, BAD])
    assert many > 3 and few == 0


def test_no_more_than_the_room_and_best_guesses_first() -> None:
    assert allot(None, 3, 3, 4, [GOOD, BAD, GOOD]) == [2, 0, 2]
    assert allot((1.0, 0.0), 3, 3, 0, [GOOD, BAD, []]) == [0, 0, 0]


def test_what_is_verified_has_the_highest_goodput_of_all_choices() -> None:
    fixed, slope, size = 1.0, 0.09, 3
    gains = [GOOD, [0.5**d for d in range(1, 9)], BAD]
    chosen = allot((fixed, slope), size, 3, 100, gains)

    def goodput(counts: tuple[int, ...]) -> float:
        expected = 3 + sum(sum(own[:count]) for own, count in zip(gains, counts, strict=True))
        return expected / (fixed + slope * (size + sum(counts)))

    best = max(goodput((a, b, c)) for a in range(9) for b in range(9) for c in range(9))
    assert abs(goodput((chosen[0], chosen[1], chosen[2])) - best) < 1e-12


def test_acceptance_is_learnt_forgotten_and_tried_again() -> None:
    one = Acceptance()
    assert one.gains(chain(3))[0] > 0.8, "a request begins with confidence"
    for _ in range(30):
        one.observe(chain(4), ())
    assert one.gains(chain(1))[0] < 0.1 and allot((1.0, 0.2), 1, 1, 100, [one.gains(chain(4))]) == [0]
    for _ in range(PROBE_FORWARDS):
        one.observe(chain(0), ())
    assert allot((1.0, 0.2), 1, 1, 100, [one.gains(chain(4))]) == [1], "one guess is tried now and then"
    one.observe(chain(1), ())
    assert allot((1.0, 0.2), 1, 1, 100, [one.gains(chain(4))]) == [0]
    for _ in range(60):
        one.observe(chain(4), (0, 1, 2, 3))
    assert one.gains(chain(2))[1] > 0.8


def test_the_guesses_of_a_tree_are_in_order_of_what_they_gain_and_what_is_beside_them_is_learnt_by_itself() -> None:
    one, tree = Acceptance(), comb((1, 2, 3), [(11,), (12,), (13,)])
    for _ in range(200):
        one.observe(tree, (0, 1, 2))
    assert one.arranged(tree).tokens[:3] == (1, 2, 3), "where the first guess is always right the chain comes first"
    for _ in range(100):
        one.observe(tree, (3,))
        one.observe(tree, (0, 4))
    best = one.arranged(tree)
    assert best.tokens[:2] == (1, 11) and one.arranged(best) == best
    gains = one.gains(best)
    assert gains == sorted(gains, reverse=True)
    assert abs(gains[0] - 1 / 3) < 0.1 and abs(gains[0] - gains[1]) < 1e-9, "never more than the guess before it at its place"
    for _ in range(100):
        one.observe(tree, ())
    assert one.gains(tree)[0] < 0.05 and one.gains(tree)[3] < 0.05


def test_the_line_of_a_forwards_cost_is_found() -> None:
    cost = ForwardCost()
    assert cost.line() is None
    cost.observe(1, 1.1)
    assert cost.line() is None, "one size says nothing of the slope"
    cost.observe(5, 1.5)
    fixed, slope = cost.line() or (0.0, 0.0)
    assert abs(fixed - 1.0) < 1e-6 and abs(slope - 0.1) < 1e-6


def _stretches(trial: Trial, plain: float, guessed: float, forwards: int) -> list[bool]:
    """What was done in each forward; seconds a token are those given."""
    ways = []
    for _ in range(forwards):
        ways.append(trial.guessing)
        trial.observe(2 if trial.guessing else 1, 2 * guessed if trial.guessing else plain)
    return ways


def test_guessing_goes_on_where_it_has_paid_and_the_other_way_is_tried_now_and_then() -> None:
    for plain, guessed, paying in ((1.0, 0.6, True), (1.0, 1.4, False)):
        ways = _stretches(Trial(), plain, guessed, 2000)
        assert ways.count(paying) > 1800 and ways.count(not paying) > 60


def test_what_pays_is_learnt_anew_when_it_changes() -> None:
    trial = Trial()
    assert _stretches(trial, 1.0, 0.6, 1000)[-1]
    changed = _stretches(trial, 1.0, 1.4, 1500)
    assert changed[-400:].count(False) > 300


def test_whoever_wants_its_guesses_at_any_cost_takes_none_from_others() -> None:
    wanted = [float("inf")] * 4
    assert allot((0.0, 1.0), 2, 2, 100, [wanted, GOOD]) == [4, 0]
    assert allot((1.0, 0.0), 2, 2, 100, [wanted, GOOD]) == [4, 8]
