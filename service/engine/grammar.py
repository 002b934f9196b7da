"""Grammars that an output must follow: compiled once a model, off the loop's thread, and followed token by token.

A grammar is text in llguidance's form; the front end made it (service/api/constraints.py) and had it tried in a process
that may die of it (service/engine/grammar_trial.py), so that compiling it here is known to be safe and quick.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from service.engine.messages import Failed, ModelCard, Submit
from service.procedures.drafts import branch
from service.procedures.types import Draft

KEPT = 64
KEPT_BYTES = 1 << 20
"""Of text, of all compiled grammars that are kept."""
STACK_BYTES = 64 << 20
# A state of the lexer takes 1 to 2 kB, and they come as an output is followed, when no trial can notice any more.
LIMITS = LLParserLimits(max_lexer_states=32_000, verbose_errors=False)
REASON_CHARACTERS = 400


class GrammarError(ValueError):
    """A grammar that cannot be compiled or followed any further, and why."""


class Grammars:
    """One model's compiled grammars, the most recent of them kept. Loads the tokeniser when the first one comes."""

    def __init__(self, folder: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._eos = list(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._kept_bytes = 0
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self._compiler = ThreadPoolExecutor(1, "grammar")
        before = threading.stack_size(STACK_BYTES)
        self._compiler.submit(lambda: None)  # starts the one thread
        threading.stack_size(before)

    def compile(self, grammar: str) -> Future[LLMatcher]:
        """The matcher at its beginning, to be copied by `Following`; GrammarError inside when there is none."""
        future = self._compiled.get(grammar)
        if future is None:
            future = self._compiled[grammar] = self._compiler.submit(self._compile, grammar)
            self._kept_bytes += len(grammar)
            # The newest stays whatever its size, for its request.
            while len(self._compiled) > 1 and (len(self._compiled) > KEPT or self._kept_bytes > KEPT_BYTES):
                self._kept_bytes -= len(self._compiled.popitem(last=False)[0])
        self._compiled.move_to_end(grammar)
        return future

    def drop(self, grammar: str) -> None:
        """Compile it anew for whoever comes next: all copies share one lexer, which has grown beyond its bounds."""
        if self._compiled.pop(grammar, None) is not None:
            self._kept_bytes -= len(grammar)

    def forget(self, future: Future[LLMatcher]) -> None:
        """Nobody waits for this one any more: if its turn has not come yet, it is not compiled."""
        if future.cancel():
            for grammar in [each for each, other in self._compiled.items() if other is future]:
                del self._compiled[grammar]
                self._kept_bytes -= len(grammar)

    def _compile(self, grammar: str) -> LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._folder, self._vocab_size, self._eos)
        return matcher(self._tokenizer, grammar)


def load_tokenizer(folder: str, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """The library's form of a model's tokeniser. Raises GrammarError where it has none."""
    tokenizer = (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")
    try:
        return LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=list(eos_token_ids) or None)
    except BaseException as error:
        # The library asserts what it cannot hold (a token of very many bytes, say), which Python sees as a panic.
        raise GrammarError(f"this model's tokeniser is not one that grammars can be used with: {error}") from None


def matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """The compiled grammar at its beginning. Raises GrammarError."""
    compiled = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if compiled.is_error():
        raise GrammarError(reason(compiled.get_error()))
    return compiled


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
        message, future = self._waiting.pop(request_id, (None, None))
        if future is not None and not any(future is other for _, other in self._waiting.values()):
            assert message is not None
            self._grammars[message.model].forget(future)
        return message

    def gave_out(self, submit: Submit, grammar: str) -> None:
        """A request could not follow its grammar any further."""
        if submit.model in self._grammars:
            self._grammars[submit.model].drop(grammar)

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

    def begin(self) -> None:
        """Raises GrammarError where not even a first token, nor the end of the text, may come."""
        self.allowed()
        if self._matcher.is_error():
            raise GrammarError(reason(self._matcher.get_error()))

    def allowed(self) -> bytes:
        """A bit a token, lowest first: those that may come next, the end of the text only where the grammar may end."""
        return self._matcher.compute_bitmask()

    def follows(self, draft: Draft) -> list[bool]:
        """Whether each of the guesses may come behind those that lead to it, without being the output's last token."""
        able: list[bool] = []
        taken: list[int] = []
        for i, parent in enumerate(draft.parents):
            able.append(parent < 0 or able[parent])
            if able[i]:
                self._go(draft, taken, parent)
                able[i] = self._matcher.validate_tokens([draft.tokens[i]]) == 1
            if able[i]:
                self._go(draft, taken, i)
                able[i] = not self._matcher.is_stopped()
        self._go(draft, taken, -1)
        return able

    def allowed_behind(self, draft: Draft) -> list[bytes]:
        """What `allowed` would say behind each of the guesses, which are some that may come next."""
        masks: list[bytes] = []
        taken: list[int] = []
        for i in range(len(draft.tokens)):
            self._go(draft, taken, i)
            masks.append(self._matcher.compute_bitmask())
        self._go(draft, taken, -1)
        return masks

    def _go(self, draft: Draft, taken: list[int], at: int) -> None:
        """From where the guesses `taken` have led, which it changes, to behind guess `at`, or back behind all that is committed.
        Raises GrammarError when a guess does not fit."""
        path = branch(draft, at)
        common = next((i for i, (one, other) in enumerate(zip(taken, path, strict=False)) if one != other), len(path))
        if len(taken) > common:
            self._matcher.rollback(len(taken) - common)
            del taken[common:]
        for i in path[len(taken) :]:
            if not self._matcher.consume_tokens([draft.tokens[i]]):
                raise GrammarError(reason(self._matcher.get_error()))
            taken.append(i)

    def take(self, tokens: Sequence[int]) -> None:
        """Goes on by committed tokens. Raises GrammarError when they do not fit, which a correct mask leaves impossible
        unless nothing was left to draw."""
        if not self._matcher.consume_tokens(list(tokens)):
            raise GrammarError(reason(self._matcher.get_error()))

    @property
    def complete(self) -> bool:
        """Nothing can follow but the end of the text."""
        return self._matcher.is_stopped()


def grammar_failure(request_id: str, error: GrammarError) -> Failed:
    """What a client is told of an output that cannot go on."""
    return Failed(request_id, 400, "grammar_failed", f"the output cannot go on by its grammar: {error}")


def reason(message: str) -> str:
    """The library's message without what stands for its state, and not the whole grammar over again."""
    return message.removesuffix("<non-verbose/>").strip()[:REASON_CHARACTERS]
