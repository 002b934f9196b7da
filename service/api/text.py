"""Tokens in, tokens out: tokenisation, and text that is never cut inside a character or a stop string."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

from service.api.chat_template import ChatTemplate

REPLACEMENT = "\ufffd"
LONGEST_CHARACTER = 4
LONGEST_CONTEXT = 64
CONTEXT = 8


class TextCodec:
    """A model folder's tokeniser and chat template."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        # A prompt is checked against the model's limits, never cut to them in silence.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        config_path = Path(folder) / "tokenizer_config.json"
        config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
        self.template = ChatTemplate(Path(folder), config)
        self.special = frozenset(token for token, added in self.tokenizer.get_added_tokens_decoder().items() if added.special)
        # Tokenisers that are not BPE may leave characters out: spaces, accents, words without meaning.
        left_out = 1 if isinstance(self.tokenizer.model, BPE) else 4
        self._longest = (max(map(len, self.tokenizer.get_vocab()), default=0) + 1) * left_out

    def longest_text(self, tokens: int) -> int:
        """No text of more characters than this fits into so many tokens, so that encoding one is in vain."""
        return tokens * self._longest

    def encode(self, text: str, special: bool = True) -> list[int]:
        """`special`: with what the tokeniser puts around a text; off for a chat, whose template wrote it already."""
        # Of a batch, unlike of one text, the tokeniser releases the interpreter's lock: other threads go on.
        return list(self.tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids)

    def decode(self, tokens: Sequence[int], shown: Mapping[int, str] = MappingProxyType({})) -> str:
        """Special tokens are left out, save those that are `shown`, with their text."""
        if not shown or shown.keys().isdisjoint(tokens):
            return str(self.tokenizer.decode_batch([list(tokens)], skip_special_tokens=True)[0])
        out, run = "", list[int]()
        for token in tokens:
            if token in shown:
                out += self.decode(run) + shown[token]
                run = []
            else:
                run.append(token)
        return out + self.decode(run)


class Detokenizer:
    """Turns a stream of tokens into text, holding back what may still be the first bytes of a character. `before` are the tokens
    of a text that goes on with it: some tokenisers leave out a text's first space."""

    def __init__(
        self, codec: TextCodec, shown: Mapping[int, str] = MappingProxyType({}), before: Sequence[int] = ()
    ) -> None:
        self._codec = codec
        self._shown = shown
        self._tokens: list[int] = [token for token in before[-CONTEXT:] if token not in codec.special]
        while REPLACEMENT in self._decoded():  # they begin inside a character or, until none is left, end in one
            del self._tokens[0]
        self._given = len(self._decoded())
        self._pending = 0

    def push(self, tokens: Sequence[int], last: bool = False) -> str:
        """The text that these tokens complete; everything that is left when `last`."""
        fresh = "".join(map(self._next, tokens))
        return fresh + self._decoded()[self._given :] if last else fresh

    def ahead(self, canvas: Sequence[int | None], sign: str) -> str:
        """What would be shown next if the text went on with this canvas, in which None is not set. `sign` stands for each
        such token, and for bytes beside them that are no whole character yet."""
        out = ""
        for _, group in groupby(canvas, lambda token: token is None):
            run = list(group)
            tokens = [token for token in run if token is not None]
            out += self._run(tokens, sign, adjoins=not out) if tokens else sign * len(run)
        return out

    def _run(self, tokens: list[int], sign: str, adjoins: bool) -> str:
        before = self._tokens if adjoins or not self._pending else []
        context = self._codec.decode(before, self._shown)
        text = self._codec.decode([*before, *tokens], self._shown)
        if adjoins:
            text = text[self._given :]
        else:
            # Some tokenisers write a token otherwise where nothing is before it.
            text = text[len(context) :] if text.startswith(context) else self._codec.decode(tokens, self._shown)
        whole = text.rstrip(REPLACEMENT)
        ended = whole + sign * (len(text) - len(whole))
        inner = ended if adjoins else ended.lstrip(REPLACEMENT)
        return sign * (len(ended) - len(inner)) + inner

    def _decoded(self) -> str:
        return self._codec.decode(self._tokens, self._shown)

    def _next(self, token: int) -> str:
        if token in self._codec.special and token not in self._shown:
            return ""  # it would only lengthen what is decoded again and again
        self._tokens.append(token)
        self._pending += 1
        text = self._decoded()
        held = len(text) - len(text.rstrip(REPLACEMENT))
        if held == 0:
            self._pending = 0
        elif self._pending >= LONGEST_CHARACTER:
            # No character has so many bytes: some of them belong to none, and only the last may become one.
            held = min(held, LONGEST_CHARACTER)
        # Until then all is held: where bytes are tokens of their own, one that is incomplete hides those before it.
        whole = len(text) - held
        fresh = text[self._given : whole]
        self._given = max(self._given, whole)
        if len(self._tokens) > LONGEST_CONTEXT and not 0 < self._pending < LONGEST_CHARACTER:
            self._trim(text)
        return fresh

    def _trim(self, text: str) -> None:
        """Decode from here on only what comes, with what is held back and a little context for leading spaces: the last
        tokens that mean the same without those before them."""
        held = len(text) - self._given
        for kept in range(8, 17):
            tail = self._codec.decode(self._tokens[-kept:], self._shown)
            if len(tail) >= held and text.endswith(tail):
                self._tokens = self._tokens[-kept:]
                self._given = len(tail) - held
                return


class StopScanner:
    """Looks for stop strings across the pieces of a stream; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.hit = False

    def push(self, text: str, last: bool = False) -> str:
        """The text that may be shown. After a hit, `hit` is true and nothing more is shown."""
        if self.hit:
            return ""
        text = self._held + text
        found = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.hit, self._held = True, ""
            return text[:found]
        keep = 0 if last else max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)

