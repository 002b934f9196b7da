"""Grammars that an output must follow: compiled once a model, off the loop's thread, and followed token by token.

A grammar is text in llguidance's form; the front end made and checked it (service/api/constraints.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

from llguidance import LLMatcher, LLTokenizer

from service.engine.messages import ModelCard, Submit

KEPT = 128


class GrammarError(ValueError):
    """A grammar that cannot be compiled or followed any further, and why."""


class Grammars:
    """One model's compiled grammars, the most recent of them kept. Loads the tokeniser when the first one comes."""

    def __init__(self, folder: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._eos = list(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self._compiler = ThreadPoolExecutor(1, "grammar")

    def compile(self, grammar: str) -> Future[LLMatcher]:
        """The matcher at its beginning, to be copied by `Following`; GrammarError inside when there is none."""
        future = self._compiled.get(grammar)
        if future is None:
            future = self._compiled[grammar] = self._compiler.submit(self._compile, grammar)
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return future

    def token_bytes(self) -> Future[Callable[[int], bytes]]:
        """From a token id to the bytes of its text; a part of a character has some of its bytes."""
        return self._compiler.submit(lambda: partial(_bytes, self._loaded()))

    def _loaded(self) -> LLTokenizer:
        if self._tokenizer is None:
            tokenizer = (Path(self._folder) / "tokenizer.json").read_text(encoding="utf-8")
            try:
                self._tokenizer = LLTokenizer(tokenizer, n_vocab=self._vocab_size, eos_token=self._eos or None)
            except BaseException as error:
                # The library asserts what it cannot hold (a token of very many bytes, say), which Python sees as a panic.
                raise GrammarError(f"this model's tokeniser is not one that grammars can be used with: {error}") from None
        return self._tokenizer

    def _compile(self, grammar: str) -> LLMatcher:
        matcher = LLMatcher(self._loaded(), grammar, log_level=0)
        if matcher.is_error():
            raise GrammarError(reason(matcher.get_error()))
        return matcher


def _bytes(tokenizer: LLTokenizer, token: int) -> bytes:
    return tokenizer.decode_bytes([token])


class Compiling:
    """Requests whose grammar is being compiled; the loop goes on without them until it is there."""

    def __init__(self) -> None:
        self._grammars: dict[str, Grammars] = {}
        self._waiting: dict[str, tuple[Submit, Future[LLMatcher]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, message: Submit, grammar: str, card: ModelCard) -> None:
        if card.name not in self._grammars:
            self._grammars[card.name] = Grammars(card.folder, card.vocab_size, card.eos_token_ids)
        self._waiting[message.id] = (message, self._grammars[card.name].compile(grammar))

    def pop(self, request_id: str) -> Submit | None:
        """Takes a request out before its grammar is there; None if it is not here."""
        message, _ = self._waiting.pop(request_id, (None, None))
        return message

    def ready(self, seconds: float) -> list[tuple[Submit, Following | GrammarError]]:
        """Those whose grammar is there or has failed; waits up to `seconds` for the first."""
        if self._waiting and seconds > 0:
            wait([future for _, future in self._waiting.values()], seconds, FIRST_COMPLETED)
        done = [(message, future) for message, future in self._waiting.values() if future.done()]
        out: list[tuple[Submit, Following | GrammarError]] = []
        for message, future in done:
            del self._waiting[message.id]
            error = future.exception()
            out.append((message, Following(future.result()) if error is None else GrammarError(str(error))))
        return out

    def expired(self, now: float) -> list[Submit]:
        """Requests whose deadline has passed; they are still to be taken out."""
        return [m for m, _ in self._waiting.values() if m.deadline is not None and m.deadline <= now]

    def ids(self) -> list[str]:
        return list(self._waiting)


class Following:
    """Where one output stands in its grammar. Depends on the committed tokens alone."""

    def __init__(self, compiled: LLMatcher) -> None:
        self._matcher = compiled.deep_copy()

    def allowed(self) -> bytes:
        """A bit a token, lowest first: those that may come next, the end of the text only where the grammar may end."""
        return self._matcher.compute_bitmask()

    def take(self, tokens: Sequence[int]) -> None:
        """Goes on by committed tokens. Raises GrammarError when they do not fit, which a correct mask leaves impossible
        unless nothing was left to draw."""
        if not self._matcher.consume_tokens(list(tokens)):
            raise GrammarError(reason(self._matcher.get_error()))

    @property
    def complete(self) -> bool:
        """Nothing can follow but the end of the text."""
        return self._matcher.is_stopped()


def reason(message: str) -> str:
    """The library's message without the dump of its state."""
    return message.split("<state>")[0].strip()
