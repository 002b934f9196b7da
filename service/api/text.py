"""Tokens in, tokens out: tokenisation, chat templates, and text that is never cut inside a character or a stop string."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from service.engine.validation import InvalidField

REPLACEMENT = "\ufffd"
LONGEST_CHARACTER = 4


class TextCodec:
    """A model folder's tokeniser and chat template."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        # A prompt is checked against the model's limits, never cut to them in silence.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        config_path = Path(folder) / "tokenizer_config.json"
        self._config: dict[str, Any] = json.loads(config_path.read_text()) if config_path.is_file() else {}
        source = self._config.get("chat_template")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        self._template = environment.from_string(source) if isinstance(source, str) else None

    def encode(self, text: str, special: bool = True) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def render(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
        """The prompt of a chat. Raises InvalidField when the model has no template or the template refuses."""
        if self._template is None:
            raise InvalidField("model", "this model has no chat template; use /v1/completions")
        reserved = {"messages", "add_generation_prompt", "bos_token", "eos_token"} & options.keys()
        if reserved:
            raise InvalidField("chat_template_kwargs", f"{', '.join(sorted(reserved))} cannot be set by chat_template_kwargs")
        words = {"bos_token": self._config.get("bos_token") or "", "eos_token": self._config.get("eos_token") or ""}
        try:
            return str(self._template.render(messages=messages, add_generation_prompt=True, **words, **options))
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidField("messages", f"the chat template refused the messages: {error}") from None


class Detokenizer:
    """Turns a stream of tokens into text, holding back what may still be the first bytes of a character."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._tokens: list[int] = []
        self._given = 0
        self._kept = 0

    def push(self, tokens: Sequence[int], last: bool = False) -> str:
        """The text that these tokens complete; everything that is left when `last`."""
        self._tokens += tokens
        text = self._codec.decode(self._tokens)
        whole = len(text)
        if not last:
            held = whole - len(text.rstrip(REPLACEMENT))
            whole -= min(held, LONGEST_CHARACTER)
        fresh = text[self._given : whole]
        self._given = max(self._given, whole)
        if len(self._tokens) > 64 and self._given == len(text):
            # Everything is out: decode from here on only what comes, with a little context for leading spaces.
            self._tokens = self._tokens[-8:]
            self._given = len(self._codec.decode(self._tokens))
        return fresh


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
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def _raise(message: str) -> None:
    raise TemplateError(message)
