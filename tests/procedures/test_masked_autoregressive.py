"""How tokens are shared out over iterations."""

from __future__ import annotations

import math

import msgspec
import pytest

from service.procedures.masked_autoregressive import MaskedAutoregressiveParameters
from service.procedures.parameters import Dpmpp2mParameters


@pytest.mark.parametrize(("tokens", "iterations"), [(1, 1), (4, 4), (4, 9), (16, 5), (256, 64), (256, 1), (10, 9)])
@pytest.mark.parametrize("order", ["random", "raster"])
def test_every_token_is_in_one_set(tokens: int, iterations: int, order: str) -> None:
    parameters = msgspec.convert({"iterations": iterations, "order": order}, MaskedAutoregressiveParameters)
    sets = parameters.sets(tokens, seed=5)
    assert len(sets) == parameters.rounds(tokens) == min(tokens, iterations) and all(sets)
    assert sorted(position for some in sets for position in some) == list(range(tokens))
    if order == "raster":
        assert [position for some in sets for position in some] == list(range(tokens))


@pytest.mark.parametrize(("tokens", "iterations"), [(256, 64), (256, 256), (64, 10), (7, 3)])
def test_sets_grow_by_the_cosine_as_published(tokens: int, iterations: int) -> None:
    """As MAR's own code has it: at least one a set, and at least one left until the last."""
    sets = MaskedAutoregressiveParameters(iterations=iterations).sets(tokens, seed=0)
    left = tokens
    for i, some in enumerate(sets):
        cosine = math.floor(tokens * math.cos(math.pi / 2 * (i + 1) / iterations))
        after = max(1, min(left - 1, cosine)) if i < iterations - 1 else 0
        assert len(some) == left - after
        left = after


def test_orders_differ_by_the_seed_alone() -> None:
    parameters = MaskedAutoregressiveParameters(iterations=16)
    assert parameters.sets(16, 1) == parameters.sets(16, 1) != parameters.sets(16, 2)


def test_a_set_is_sampled_by_the_sampler_that_was_asked_for() -> None:
    parameters = MaskedAutoregressiveParameters(sampler="dpmpp_2m", steps=7, guidance=2.0)
    assert parameters.table() == Dpmpp2mParameters(steps=7).table()


@pytest.mark.parametrize(
    "given", [{"iterations": 0}, {"sampler": "flow_map"}, {"order": "snake"}, {"eta": 1.0}]
)
def test_what_it_does_not_have_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(given, MaskedAutoregressiveParameters)
