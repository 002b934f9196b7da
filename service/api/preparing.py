"""From a checked body to the engine's work: prompts, sampling, sizes, limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Any, TypeVar

from service.api.errors import ApiError
from service.api.sampling_schemas import SamplingFields
from service.api.service_state import Service
from service.api.text import TextCodec
from service.engine.messages import ImageWork, ModelCard, Sampling, TextWork
from service.engine.validation import InvalidField

T = TypeVar("T")
LONG_TEXT = 20_000
UNASKED = 256
COLDEST = 1e-5


async def beside_the_loop(size: int, work: Callable[[], T]) -> T:
    """The work of a text of `size` characters: in a thread where it is long enough to hold up other requests."""
    return await asyncio.to_thread(work) if size > LONG_TEXT else work()


def prompt_tokens(
    service: Service, card: ModelCard, prompt: str | list[int], param: str = "prompt", special: bool = True
) -> list[int]:
    """Token ids of a prompt. Raises InvalidField when it is empty, unknown to the model, or longer than its context."""
    tokens = _encoded(service, card, prompt, param, special) if isinstance(prompt, str) else list(prompt)
    if not tokens:
        raise InvalidField(param, f"{param} must not be empty")
    beyond = next((token for token in tokens if token >= card.vocab_size), None)
    if beyond is not None:
        raise InvalidField(param, f"token {beyond} is outside the vocabulary of {card.name} ({card.vocab_size} tokens)")
    if len(tokens) >= card.max_model_len:
        raise InvalidField(
            param, f"{param} has {len(tokens)} tokens; {card.name} takes at most {card.max_model_len - 1} and one to generate"
        )
    return tokens


def _encoded(service: Service, card: ModelCard, text: str, param: str, special: bool = True) -> list[int]:
    codec = service.codec(card.folder)
    longest = codec.longest_text(card.max_model_len)
    if len(text) > longest:
        context = f"the context of {card.name}, {card.max_model_len} tokens, holds at most {longest}"
        raise InvalidField(param, f"{param} has {len(text)} characters; {context}")
    return codec.encode(text, special)


def text_work(
    card: ModelCard, codec: TextCodec, body: SamplingFields, prompt: list[int], max_tokens: int | None, param: str,
    revisions: bool = False, grammar: str = "", score_prompt: bool = False,
) -> TextWork:  # fmt: skip
    """Raises InvalidField when prompt and max_tokens together exceed the context. Without `max_tokens` there are as many as
    the context has room for; where all that is to be written is computed from the start, at most UNASKED. Raises it for a
    bias of what cannot be drawn."""
    _check_biases(card, codec, body)
    room = card.max_model_len - len(prompt)
    if max_tokens is not None and max_tokens > room:
        raise InvalidField(
            param, f"{param} {max_tokens} and a prompt of {len(prompt)} tokens exceed the context of {card.max_model_len}"
        )
    unasked = min(room, UNASKED) if card.attention == "full" else room
    limit = unasked if max_tokens is None else max_tokens
    if body.min_tokens > limit:
        raise InvalidField("min_tokens", f"min_tokens {body.min_tokens} exceeds the limit of {limit} tokens")
    wrong = next((token for token in body.stop_token_ids if token >= card.vocab_size), None)
    if wrong is not None:
        raise InvalidField("stop_token_ids", f"token {wrong} is outside the vocabulary of {card.name}")
    return TextWork(
        prompt, limit, sampling(card, body), body.stop_token_ids, body.min_tokens, body.ignore_eos, revisions, body.likeliest(),
        grammar, score_prompt,
    )  # fmt: skip


def sampling(card: ModelCard, body: SamplingFields) -> Sampling:
    """What the request says; where it is silent, what the model's generation_config.json says. A temperature below
    `COLDEST` is 0, the likeliest token: logits divided by less leave float32."""

    def value(name: str) -> float:
        given = name in body.model_fields_set or name not in card.sampling_defaults
        return float(getattr(body, name) if given else card.sampling_defaults[name])

    names = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    numbers = {name: value(name) for name in names}
    if numbers["temperature"] < COLDEST:
        numbers["temperature"] = 0.0
    bias = _bias(card, body)
    return Sampling(**numbers, top_k=max(int(value("top_k")), 0), logit_bias=bias)


def _check_biases(card: ModelCard, codec: TextCodec, body: SamplingFields) -> None:
    """Rows of the vocabulary that are no token, and the mask, are never drawn, whatever their logits."""
    for token in _bias(card, body):
        if codec.tokenizer.id_to_token(token) is None or token == card.mask_token_id:
            what = "the mask token" if token == card.mask_token_id else "a row of the vocabulary without a token"
            raise InvalidField("logit_bias", f"{card.name} never draws {token}, {what}: a bias for it has no effect")


def _bias(card: ModelCard, body: SamplingFields) -> dict[int, float]:
    digits = len(str(card.vocab_size))
    for key in body.logit_bias:
        is_number = key.isascii() and key.isdecimal() and len(key) <= digits  # of thousands of digits Python makes no int
        if not is_number or int(key) >= card.vocab_size:
            raise InvalidField("logit_bias", f"{key!r:.80} is no token id of {card.name}, which has {card.vocab_size} tokens")
    return {int(key): float(bias) for key, bias in body.logit_bias.items() if bias}


def image_work(
    service: Service, card: ModelCard, prompt: str, negative: str | None, size: str | None, preview_every: int
) -> ImageWork:
    """Raises InvalidField for a size that the model cannot make, or words that it does not know."""
    allowed = {f"{width}x{height}": (width, height) for width, height in card.sizes}
    if size in (None, "auto"):
        size = next(iter(allowed))
    if size not in allowed:
        raise InvalidField("size", f"{card.name} cannot make {size!r}; it makes: {', '.join(allowed)}")
    width, height = allowed[size]
    caption = _caption(service, card, prompt, "prompt")
    unwanted = _caption(service, card, negative, "negative_prompt") if negative else []
    return ImageWork(caption, width, height, unwanted, preview_every)


def image_parameters(choice: dict[str, Any] | None, steps: int | None, guidance: float | None, default: str) -> dict[str, Any]:
    """The procedure with diffusers' names for its parameters folded in. Raises InvalidField when both disagree."""
    out = {"name": default, **(choice or {})}
    for param, name, value in (("num_inference_steps", "steps", steps), ("guidance_scale", "guidance", guidance)):
        if value is None:
            continue
        if name in out and out[name] != value:
            raise InvalidField(param, f"{param} {value} contradicts procedure.{name} {out[name]}")
        out[name] = value
    return out


def _caption(service: Service, card: ModelCard, text: str, param: str) -> list[int]:
    codec = service.codec(card.folder)
    if not text.strip():
        raise InvalidField(param, f"{param} must not be empty")
    tokens = _encoded(service, card, text, param)
    unknown = codec.tokenizer.token_to_id("<unk>")
    if unknown in tokens:
        words = list(islice((word for word in text.split() if unknown in codec.encode(word)), 5))
        known = sorted(word for word in codec.tokenizer.get_vocab() if not word.startswith("<"))
        listing = f"; it knows: {', '.join(known)}" if len(known) <= 100 else ""
        raise InvalidField(param, f"{card.name} does not know {', '.join(map(repr, words)) or 'a word'}{listing}")
    if len(tokens) > card.max_model_len:
        raise InvalidField(param, f"{param} has {len(tokens)} tokens; {card.name} takes at most {card.max_model_len}")
    return tokens


def check_n(service: Service, n: int, param: str = "n") -> None:
    if n > service.settings.max_n:
        raise ApiError(400, f"{param} {n} is more than this server allows ({service.settings.max_n})", param, "invalid_value")
