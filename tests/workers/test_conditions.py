"""What texts became is kept for those who ask again, as far as there is room."""

from __future__ import annotations

import torch

from service.workers.conditions import BESIDE_NUMBERS, Conditions
from service.workers.types import EncodeMove
from tests.latent_networks import ToyNetwork


def test_small_conditions_of_long_texts_are_forgotten_too() -> None:
    network = ToyNetwork()
    conditions = Conditions(network, torch.device("cpu"), kept=10 * (BESIDE_NUMBERS + 4 * 1000))
    texts = [str(i).rjust(1000) for i in range(50)]
    for text in texts:
        conditions.encode([EncodeMove((text,), 64, 64)])
    assert 9 <= len(conditions._known) <= 10
    assert conditions._bytes <= 10 * (BESIDE_NUMBERS + 4 * 1000)
    conditions.encode([EncodeMove((texts[-1],), 64, 64)])
    assert len(network.encoded) == 50


def test_texts_whose_bits_must_not_depend_on_others_are_encoded_alone() -> None:
    moves = [EncodeMove((text, ""), 64, 64) for text in ("one", "two", "three")]
    for alone, calls in ((False, [["one", "two", "three"], [""]]), (True, [["one"], ["two"], ["three"], [""]])):
        network = ToyNetwork()
        Conditions(network, torch.device("cpu"), alone=alone).encode(moves)
        assert sorted(network.encoded) == sorted(calls)
