"""Text is never cut inside a character or a stop string."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from service.api.sampling_schemas import SamplingFields
from service.api.text import Detokenizer, StopScanner, TextCodec
from service.api.text_output import TextOutput
from service.engine.messages import Logprob, Revision, Scores, Tokens
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
def test_bytes_in_any_order_give_the_text_of_all_of_them(codec: TextCodec, seed: int) -> None:
    """Also where the text is trimmed while it ends in what may become a character; 256 is a special token."""
    rng = random.Random(seed)
    alphabet = [0xF0, 0x9F, 0x8E, 0xAD, 0xC3, 0xA9, 0x61, 0xFF, 0xED, 0xA0, 256]
    tokens, detokenizer = [rng.choice(alphabet) for _ in range(500)], Detokenizer(codec)
    text = "".join(detokenizer.push([token]) for token in tokens) + detokenizer.push([], last=True)
    assert text == codec.decode(tokens)


@pytest.mark.parametrize(
    "committed,canvas,shown",
    [
        ([], [None, 0x61, None, None], "_a__"),
        ([], [None, 0xA9, 0x61, 0xC3], "__a_"),  # the end of a character, and the beginning of one
        ([0x61, 0xC3], [0xA9, 0x62, None], "éb_"),  # it began in what is committed, and was not shown there
        ([0x61, 0xC3], [None, 0xA9, 0x62], "__b"),
        ([], [*"日本".encode(), None, *"語".encode()], "日本_語"),
        ([], [0x61, 0xFF, 0x62, 256, 0x63], "a\ufffdbc"),  # not half a character, but none; and a special token
        ([0x61], [None, None], "__"),
    ],
)
def test_a_canvas_shows_whole_characters_and_signs_for_what_is_missing(
    codec: TextCodec, committed: list[int], canvas: list[int | None], shown: str
) -> None:
    detokenizer = Detokenizer(codec)
    detokenizer.push(committed)
    assert detokenizer.ahead(canvas, "_") == shown == detokenizer.ahead(canvas, "_")
    known = [token for token in canvas if token is not None]
    assert detokenizer.push(known, last=True) == codec.decode([*committed, *known])[1 if committed else 0 :]


def test_a_word_of_a_canvas_keeps_its_space_where_the_tokeniser_strips_the_first(byte_fallback: TextCodec) -> None:
    detokenizer = Detokenizer(byte_fallback)
    a, space = (byte_fallback.tokenizer.token_to_id(word) for word in ("a", "▁"))
    assert detokenizer.push([space, a]) == "a"
    assert detokenizer.ahead([None, space, a], "_") == "_ a" and detokenizer.ahead([space, a], "_") == " a"


def test_a_text_that_goes_on_keeps_the_space_that_a_text_of_its_own_would_not_have(byte_fallback: TextCodec) -> None:
    a, space = (byte_fallback.tokenizer.token_to_id(word) for word in ("a", "▁"))
    before = byte_fallback.encode("a a")
    assert Detokenizer(byte_fallback, before=before).push([space, a]) == " a"
    assert Detokenizer(byte_fallback, before=before * 20).push([a, space, a], last=True) == "a a"
    assert Detokenizer(byte_fallback).push([space, a]) == "a"
    euro = [byte_fallback.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "€".encode()]
    assert Detokenizer(byte_fallback, before=[a, *euro]).push([space, a]) == " a"
    assert Detokenizer(byte_fallback, before=[*euro[1:], *[a] * 6]).push([space, a]) == " a"
    assert Detokenizer(byte_fallback, before=[a, *euro[:2]]).push([a]) == "a"
    assert Detokenizer(byte_fallback, before=[*euro * 4][:-1]).push(euro, last=True) == "€"


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    """As Llama 2's and Gemma's: what is in no other token is bytes, of which one too few or too many makes all of a run
    unreadable."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "é"]
    model = models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    folder = tmp_path_factory.mktemp("fallback")
    tokenizer.save(str(folder / "tokenizer.json"))
    return TextCodec(str(folder))


@pytest.mark.parametrize("seed", range(10))
def test_characters_of_byte_tokens_come_whole_one_after_another(byte_fallback: TextCodec, seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice("日本🎭🎨éüab ") for _ in range(20 * seed + 4)).strip() + "."
    tokens, detokenizer = byte_fallback.encode(text), Detokenizer(byte_fallback)
    pieces = [detokenizer.push([token]) for token in tokens] + [detokenizer.push([], last=True)]
    assert "".join(pieces) == byte_fallback.decode(tokens) == text
    assert max(map(len, pieces)) == 1


@pytest.mark.parametrize("tokens", [[0x9F], [0xF0, 256], [*"é🎭日".encode()], [0xF0, 0x9F]])
def test_what_is_decoded_again_stays_short(codec: TextCodec, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    decode, longest, detokenizer = codec.decode, 0, Detokenizer(codec)

    def measured(tokens: list[int], shown: Any) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return decode(tokens, shown)

    monkeypatch.setattr(codec, "decode", measured)
    text = "".join(detokenizer.push([token]) for token in tokens * 300) + detokenizer.push([], last=True)
    assert longest <= 70 and text == decode(tokens * 300)


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


def test_no_canvas_is_shown_once_a_stop_string_was_there(codec: TextCodec) -> None:
    stopped: list[int] = []
    job: Any = SimpleNamespace(stop=stopped.append)
    output = TextOutput(job, 0, codec, SamplingFields(stop="lo"))
    output.feed(Tokens("r", list(b"hel")))
    shown = output.canvas(Revision("r", 7, [0x6C, None]))
    assert shown == {"start": 7, "length": 2, "positions": [7], "token_ids": [0x6C], "text": "l▁"}
    output.feed(Tokens("r", list(b"lo world")))
    assert output.canvas(Revision("r", 15, [0x21, None])) is None and stopped == [0] and output.text == "hel"


def test_the_token_that_ends_a_text_counts_for_how_likely_it_is(codec: TextCodec) -> None:
    empty, short = (TextOutput(SimpleNamespace(), 0, codec, SamplingFields()) for _ in range(2))  # type: ignore[arg-type]
    for output, drawn in ((empty, []), (short, [-1.0])):
        output.feed(Tokens("r", list(b"a" * len(drawn)), [Logprob(own, []) for own in drawn]))
        output.feed(Scores("r", [0], [Logprob(-5.0, [])], ends=True))
    assert (empty.mean_logprob, short.mean_logprob) == (-5.0, -3.0)
