"""What a client sees of one text output: text up to its stop string, the tokens behind it, why it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from service.api.running import Job
from service.api.sampling_schemas import SamplingFields
from service.api.text import Detokenizer, StopScanner, TextCodec
from service.engine.messages import Done, Logprob, Revision, Scores, Tokens

MASK = "▁"


@dataclass(slots=True)
class Tokenwise:
    """Log-probabilities and where the text of each token begins, one entry a token."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprob | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def __add__(self, other: Tokenwise) -> Tokenwise:
        return Tokenwise(
            self.token_ids + other.token_ids, self.logprobs + other.logprobs, self.offsets + other.offsets
        )  # fmt: skip

    def behind(self, length: int) -> Tokenwise:
        """The same behind a text of that length."""
        return Tokenwise(self.token_ids, self.logprobs, [length + offset for offset in self.offsets])

    def since(self, start: int) -> Tokenwise:
        return Tokenwise(self.token_ids[start:], self.logprobs[start:], self.offsets[start:])


class TextOutput:
    """Feed it Tokens and Scores, then Done; it gives the text that may be shown. `shown` are special tokens that belong to
    the text, `before` the tokens of a text that it goes on with, `scored` and `scores` the tokens and log-probabilities of
    Scores, `length` what the text has of what came, `accepted_text` the beginning of what was fed last that came of
    accepted guesses."""

    def __init__(
        self, job: Job, index: int, codec: TextCodec, body: SamplingFields, shown: Mapping[int, str] = MappingProxyType({}),
        before: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.text = ""
        self.accepted_text = ""
        self.tokenwise = Tokenwise()
        self.done: Done | None = None
        self._job = job
        self._index = index
        self._detokenizer = Detokenizer(codec, shown, before)
        self._scanner = StopScanner(body.stops())
        self._min_tokens = body.min_tokens
        self._one_by_one = bool(body.stops()) or body.likeliest() is not None
        self.length = 0
        self.scored: list[int] = []
        self.scores: list[Logprob] = []
        self._ending: list[Logprob] = []

    @property
    def token_ids(self) -> list[int]:
        return self.tokenwise.token_ids

    @property
    def finish_reason(self) -> str:
        assert self.done is not None
        return "stop" if self._scanner.hit else self.done.finish_reason

    @property
    def mean_logprob(self) -> float:
        """Of all tokens that were drawn, the one that ended the text too."""
        drawn = [each.own for each in (*self.tokenwise.logprobs, *self._ending) if each is not None]
        return sum(drawn) / max(1, len(drawn))

    def feed(self, event: Tokens | Scores | Done) -> tuple[str, list[int]]:
        """The newly visible text, and the tokens that came with it, none beyond the one that completes a stop string.
        Ends the request there."""
        if isinstance(event, Done):
            self.done = event
        if self._scanner.hit:
            return "", []
        if isinstance(event, Scores):
            self.scored += event.token_ids
            self.scores += event.logprobs
            self._ending = event.logprobs if event.ends else []
            return "", []
        before = len(self.token_ids)
        self.accepted_text = ""
        if isinstance(event, Done):
            shown = self._scanner.push(self._detokenizer.push([], last=True), last=True)
        else:
            shown = self._take(event)
            if self._scanner.hit:
                self._job.stop(self._index)
        self.text += shown
        return shown, self.token_ids[before:]

    def canvas(self, revision: Revision) -> dict[str, Any] | None:
        """Absolute positions that are set, their token ids, and the canvas as text with a sign for what is masked; None
        once the text has ended."""
        if self._scanner.hit:
            return None
        known = [(i, token) for i, token in enumerate(revision.token_ids) if token is not None]
        return {
            "start": revision.start,
            "length": len(revision.token_ids),
            "positions": [revision.start + i for i, _ in known],
            "token_ids": [token for _, token in known],
            "text": self._detokenizer.ahead(revision.token_ids, MASK),
        }

    def _take(self, event: Tokens) -> str:
        shown = ""
        size = len(event.token_ids)
        ends = range(1, size + 1) if self._one_by_one else sorted({min(event.accepted, size), size} - {0})
        for at, end in pairwise((0, *ends)):
            self.tokenwise.token_ids += event.token_ids[at:end]
            self.tokenwise.logprobs += event.logprobs[at:end]
            self.tokenwise.offsets.append(self.length)
            text = self._detokenizer.push(event.token_ids[at:end])
            self.length += len(text)
            shown += self._scanner.push(text) if len(self.token_ids) >= self._min_tokens else text
            if end <= event.accepted:
                self.accepted_text = shown
            if self._scanner.hit:
                break
        return shown
