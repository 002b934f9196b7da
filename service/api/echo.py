"""A prompt that its output begins with, and what is told of its tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.api.text import Detokenizer, TextCodec
from service.api.text_output import TextOutput, Tokenwise


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt's text and, where its log-probabilities are asked for, its tokens and where the text of each begins."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    @classmethod
    def scored(cls, codec: TextCodec, tokens: list[int]) -> Echo:
        detokenizer, text, offsets = Detokenizer(codec), "", list[int]()
        for token in tokens:
            offsets.append(len(text))
            text += detokenizer.push([token])
        return cls(text + detokenizer.push([], last=True), tokens, offsets)

    def told(self, output: TextOutput, start: int = 0) -> Tokenwise:
        """What is known of the tokens from `start` on; the first has no log-probability, since nothing comes before it."""
        logprobs = [None, *output.scores][start : len(self.token_ids)]
        stop = start + len(logprobs)
        return Tokenwise(self.token_ids[start:stop], list(logprobs), self.offsets[start:stop])

    def between(self, start: int, stop: int) -> str:
        """The text of the tokens start..stop-1."""
        return self.text[self.offsets[start] : self.offsets[stop] if stop < len(self.offsets) else None]

    def ending(self, output: TextOutput) -> Tokenwise:
        """The token that ended the output, behind a prompt that was scored. It is no part of the text; who counts entries from
        the end relies on one for every token that was drawn."""
        if not self.token_ids:
            return Tokenwise()
        first = len(self.token_ids) - 1
        tokens = output.scored[first:]
        return Tokenwise(tokens, list(output.scores[first:]), [len(self.text) + output.length] * len(tokens))
