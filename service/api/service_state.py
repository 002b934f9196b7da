"""What the routes share: settings, engine client, metrics, and the codecs of the models."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from service import __version__
from service.api.drain import Drain
from service.api.errors import ApiError
from service.api.text import TextCodec
from service.api.trials import Trials
from service.engine.client import EngineClient, EngineUnavailable
from service.engine.grammar import GrammarError, load_tokenizer
from service.engine.messages import ModelCard
from service.engine.validation import InvalidField
from service.metrics import Metrics
from service.settings import Settings

log = logging.getLogger("stride.api")


@dataclass
class Service:
    settings: Settings
    client: EngineClient
    metrics: Metrics
    drain: Drain
    running: dict[str, list[str]] = field(default_factory=dict)
    _trials: dict[str, Trials] = field(default_factory=dict)
    _loading: list[asyncio.Task[None]] = field(default_factory=list)
    _decoders: dict[str, asyncio.Task[Callable[[int], bytes]]] = field(default_factory=dict)

    def card(self, name: str, kind: str | None = None) -> ModelCard:
        """Raises EngineUnavailable before the models are known, ApiError 404 or 400 for a wrong one."""
        if not self.client.models:
            raise EngineUnavailable("the models are still being loaded")
        card = self.client.models.get(name)
        if card is None:
            known = ", ".join(self.client.models)
            raise ApiError(404, f"no model is called {name!r}; served: {known}", "model", "model_not_found")
        if kind is not None and card.kind != kind:
            raise ApiError(400, f"{name} makes {card.kind}, this route makes {kind}", "model", "wrong_kind")
        return card

    @staticmethod
    @functools.cache
    def codec(folder: str) -> TextCodec:
        codec = TextCodec(folder)
        if codec.template.broken is not None:
            log.warning("%s: the chat template is broken, chats are refused: %s", folder, codec.template.broken)
        return codec

    def take_models(self, cards: Sequence[ModelCard]) -> None:
        """They are loaded: so are their codecs now, beside the loop, before somebody waits for them. Counts of theirs begin."""
        self.metrics.served(cards, self.client.procedures())
        self._loading = [asyncio.create_task(asyncio.to_thread(_load_codec, card)) for card in cards if card.vocab_size]

    def trials(self, card: ModelCard) -> Trials:
        """Where the model's grammars are tried."""
        if card.folder not in self._trials:
            self._trials[card.folder] = Trials(card)
        return self._trials[card.folder]

    def close(self) -> None:
        """Ends the processes of the trials."""
        for trials in self._trials.values():
            trials.close()

    async def token_bytes(self, card: ModelCard) -> Callable[[int], bytes]:
        """The bytes of a token's text, by its id; of a part of a character some of its bytes. Loaded once, beside the loop.

        Raises InvalidField where the tokeniser cannot tell them."""
        if card.folder not in self._decoders:
            self._decoders[card.folder] = asyncio.create_task(asyncio.to_thread(_token_bytes, card))
        try:
            # Shielded: others wait for the same.
            return await asyncio.shield(self._decoders[card.folder])
        except GrammarError as error:
            raise InvalidField("logprobs", f"logprobs cannot be told: {error}") from None

    @staticmethod
    def fingerprint(card: ModelCard) -> str:
        """OpenAI's `system_fingerprint`: the same while model, weights and version are."""
        return _fingerprint(card.name, card.folder)


def _load_codec(card: ModelCard) -> None:
    try:
        Service.codec(card.folder)
    except Exception as error:  # whatever a tokeniser's files hold, others are served on
        log.warning("%s: its tokeniser cannot be loaded: %s", card.name, error)


def _token_bytes(card: ModelCard) -> Callable[[int], bytes]:
    tokenizer = load_tokenizer(card.folder, card.vocab_size, card.eos_token_ids)
    return lambda token: tokenizer.decode_bytes([token])


@functools.cache
def _fingerprint(name: str, folder: str) -> str:
    files = sorted(file for file in Path(folder).iterdir() if file.suffix in (".json", ".safetensors", ".jinja"))
    parts = [__version__, name]
    for file in files:
        small = file.stat().st_size < 1 << 20
        parts.append(f"{file.name} {file.stat().st_size} {hashlib.sha256(file.read_bytes()).hexdigest() if small else ''}")
    return "fp_" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]
