"""Finds tool calls in the text of an output as it comes, and gives their parts on at once."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from service.api.body import is_text
from service.api.text import overlap
from service.api.tool_formats import LLAMA3, MISTRAL, ToolFormat


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsGoOn:
    index: int
    text: str


Piece = Content | CallBegins | ArgumentsGoOn

# A call's name and arguments are looked for in so many characters; further on, only in a whole object.
LONGEST_HEAD = 512
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class ToolCallParser:
    """Feed it text; it gives content, the beginnings of calls and their arguments, piece by piece.

    What opens like a call but is none comes out as content. `broken` tells that a call which had begun turned out not to
    be one; the whole text is then the only true account. `names` are the functions that there are: a format without an
    opening sign takes an object for a call only if it names one of them. With `several` false, what follows the first
    call is dropped and `complete` says that it is whole.
    """

    def __init__(self, form: ToolFormat, names: frozenset[str], several: bool = True) -> None:
        self.calls: list[tuple[str, str]] = []
        self.broken = False
        self.complete = False
        self._form = form
        self._names = names
        self._several = several
        self._rest = ""
        self._blank = ""
        self._state = self._start if form is LLAMA3 else self._text
        self._value = _Value()
        self._scanned = 0

    def push(self, text: str, last: bool = False) -> list[Piece]:
        self._rest += text
        pieces: list[Piece] = []
        while not self.complete and (state := self._state)(pieces, last) and (self._rest or self._state != state):
            pass
        if last and self._state == self._arguments:
            self.broken = True
        return self._joined(pieces, last)

    def _joined(self, pieces: list[Piece], last: bool) -> list[Piece]:
        """Blank text around calls is not content; it is held back until there is more."""
        out: list[Piece] = []
        for piece in pieces:
            if not isinstance(piece, Content):
                self._blank = ""
                out.append(piece)
                continue
            text = self._blank + piece.text
            shown = text.rstrip()
            self._blank = text[len(shown) :]
            if shown:
                out.append(Content(shown))
        if last and self._blank and not self.calls:
            out.append(Content(self._blank))
        return out

    def _start(self, pieces: list[Piece], last: bool) -> bool:
        """The beginning of an output in a format whose calls need no opening sign."""
        rest, sign = self._rest.lstrip(), self._form.opening
        if rest.startswith(sign):
            self._rest, self._state = rest[len(sign) :], self._call
        elif rest.startswith("{"):
            self._state = self._call
        elif rest and not sign.startswith(rest):
            self._state = self._plain
        else:
            return last and bool(rest) and self._plain(pieces, last)
        return True

    def _plain(self, pieces: list[Piece], last: bool) -> bool:
        pieces.append(Content(self._rest))
        self._rest = ""
        return False

    def _text(self, pieces: list[Piece], last: bool) -> bool:
        sign = self._form.opening
        before, found, after = self._rest.partition(sign)
        if found:
            self._rest, self._state = after, self._call
        else:
            keep = 0 if last else overlap(before, sign)
            before, self._rest = before[: len(before) - keep], before[len(before) - keep :]
        if before:
            pieces.append(Content(before))
        return bool(found)

    def _call(self, pieces: list[Piece], last: bool) -> bool:
        """After an opening sign: a name and the beginning of its arguments, or a whole object with both in any order."""
        rest = self._rest
        if self._form is MISTRAL and not self.calls:
            rest = rest.lstrip().removeprefix("[")
        if self._form.split:
            name, found, after = rest.partition(self._form.split)
            if found:
                return self._begin(pieces, name.strip(), after)
            return last and self._none(pieces)
        rest = rest.lstrip()
        if self._scanned <= LONGEST_HEAD and (head := _HEAD.match(rest, 0, LONGEST_HEAD)) is not None:
            return self._begin(pieces, _loaded(head[1]), rest[head.end() :])
        self._scanned += self._value.push(rest[self._scanned :])
        if self._value.ended:
            call, after = _loaded(rest[: self._scanned]), rest[self._scanned :]
            arguments = call.get("arguments", call.get("parameters")) if isinstance(call, dict) else None
            if isinstance(call, dict) and arguments is None and not call.keys().isdisjoint(("arguments", "parameters")):
                arguments = {}  # as models write a call of a function without any
            if isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(arguments, dict):
                return self._begin(pieces, call["name"], json.dumps(arguments) + "}" + after)
            return self._none(pieces)
        return (last or (bool(rest) and not rest.startswith("{"))) and self._none(pieces)

    def _none(self, pieces: list[Piece]) -> bool:
        """What looked like a call is none."""
        self._value, self._scanned = _Value(), 0
        if self._form is LLAMA3:
            self._state = self._plain
            return True
        pieces.append(Content(self._form.opening))
        self._state = self._text
        return True

    def _begin(self, pieces: list[Piece], name: Any, rest: str) -> bool:
        """`name` None: it was no JSON."""
        if not isinstance(name, str) or not is_text(name) or (self._form is LLAMA3 and name not in self._names):
            return self._none(pieces)
        pieces.append(CallBegins(len(self.calls), name))
        self.calls.append((name, ""))
        self._rest, self._state, self._value = rest, self._arguments, _Value()
        return True

    def _arguments(self, pieces: list[Piece], last: bool) -> bool:
        size = self._value.push(self._rest)
        piece, self._rest = self._rest[:size], self._rest[size:]
        name, before = self.calls[-1]
        self.calls[-1] = (name, before + piece)
        if piece:
            pieces.append(ArgumentsGoOn(len(self.calls) - 1, piece))
        if not self._value.ended:
            return False
        if not isinstance(_loaded(self.calls[-1][1]), dict):
            self.broken = True
        self._value, self._scanned = _Value(), 0
        self.complete = not self._several
        self._state = self._after
        return True

    def _after(self, pieces: list[Piece], last: bool) -> bool:
        """Behind a call's arguments: what closes the call, and perhaps the next one."""
        form, rest = self._form, self._rest
        if form.after:
            _, found, after = rest.partition(form.after.strip())
            rest = rest[len(rest) - overlap(rest, form.after.strip()) :]
            self._rest, self._state = (after, self._text) if found else (rest, self._after)
            return bool(found)
        if form.split:
            self._state = self._text
            return True
        follows = re.match(r"\s*\}\s*([,;])\s*(?=\S)", rest)
        if follows is not None:
            self._rest, self._state = rest[follows.end() :], self._call
            return True
        ends = re.match(r"\s*\}\s*(\]|[^\s,;])", rest)
        if ends is not None:
            self._rest, self._state = rest[ends.end() if ends[1] == "]" else ends.start(1) :], self._plain
            return True
        return False


class _Value:
    """Follows one JSON value by its brackets and strings to its end; whether it is valid is not asked here."""

    def __init__(self) -> None:
        self.ended = False
        self._depth = 0
        self._in_string = self._escaped = False

    def push(self, text: str) -> int:
        """How many of these characters belong to the value; `ended` when it is whole."""
        for at, character in enumerate(text):
            if self._step(character):
                self.ended = True
                return at + 1
        return len(text)

    def _step(self, character: str) -> bool:
        """True at the last character of the value."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
                return self._depth == 0
            return False
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._depth <= 0
        return False


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
