"""Text is never cut inside a character or a stop string."""

from __future__ import annotations

import random

import pytest

from service.api.text import Detokenizer, StopScanner, TextCodec
from service.models.loading import EMBEDDED

SAMPLE = "Ünïcödé 🎭🏳️‍🌈 日本語 plain — text\n" * 5


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(str(EMBEDDED / "shakespeare"))


@pytest.mark.parametrize("seed", range(5))
def test_characters_come_whole_however_the_tokens_are_cut(codec: TextCodec, seed: int) -> None:
    rng = random.Random(seed)
    tokens, detokenizer, pieces = codec.encode(SAMPLE), Detokenizer(codec), []
    while tokens:
        size = rng.randint(1, 5)
        pieces.append(detokenizer.push(tokens[:size]))
        tokens = tokens[size:]
    pieces.append(detokenizer.push([], last=True))
    assert "".join(pieces) == SAMPLE and "\ufffd" not in "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 40


def test_bytes_that_never_become_a_character_come_at_the_end(codec: TextCodec) -> None:
    detokenizer = Detokenizer(codec)
    assert detokenizer.push([0xF0, 0x9F]) == ""
    assert set(detokenizer.push([], last=True)) == {"\ufffd"}
    broken = Detokenizer(codec)
    assert broken.push([0xFF, *b"abc"]).endswith("abc")


@pytest.mark.parametrize("seed", range(20))
def test_a_stop_string_is_found_across_pieces_and_never_leaks(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice("ab") for _ in range(60))
    stops = ["".join(rng.choice("ab") for _ in range(rng.randint(2, 6))) for _ in range(2)]
    scanner, shown, rest, given = StopScanner(stops), "", text, ""
    while rest and not scanner.hit:
        size = rng.randint(1, 3)
        given += rest[:size]
        shown += scanner.push(rest[:size], last=len(rest) <= size)
        rest = rest[size:]
    # What was shown is the text before the first stop string of what had come by then.
    assert scanner.hit == any(stop in text for stop in stops)
    assert shown == (given[: min(given.find(stop) for stop in stops if stop in given)] if scanner.hit else text)


def test_what_may_begin_a_stop_string_is_held_back_until_it_does_not() -> None:
    scanner = StopScanner(["<end>"])
    assert scanner.push("a<en") == "a"
    assert scanner.push("emy") == "<enemy"
    assert scanner.push("b<end") == "b"
    assert scanner.push(">c") == "" and scanner.hit
