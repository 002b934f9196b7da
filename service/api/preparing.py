"""From a checked body to the engine's work: prompts, sampling, sizes, limits."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from itertools import islice
from typing import Any, TypeVar

from service.api.errors import ApiError
from service.api.given_pictures import given_picture
from service.api.sampling_schemas import SamplingFields
from service.api.schemas import PictureFields
from service.api.service_state import Service
from service.api.text import TextCodec
from service.engine.messages import ImageWork, ModelCard, Sampling, SizeRule, TextWork
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


async def image_work(
    service: Service, card: ModelCard, prompt: str, body: PictureFields, preview_every: int, transparent: bool = False
) -> ImageWork:
    """Raises InvalidField for a size that the model cannot make, words or adapters that it does not know, and for what is no
    picture. With `transparent` a mask says by transparency where to change, otherwise by whiteness."""
    assert card.sizes is not None
    size = None if body.size in (None, "auto") else _size(card, card.sizes, str(body.size))
    _check_caption(service, card, prompt, "prompt")
    if body.negative_prompt:
        _check_caption(service, card, body.negative_prompt, "negative_prompt")
    unknown = next((name for name, _ in body.adapters() if name not in card.adapters), None)
    if unknown is not None:
        has = f"it has: {', '.join(card.adapters)}" if card.adapters else "it was loaded without any"
        raise InvalidField("lora", f"{card.name} has no adapter {unknown!r:.80}; {has}")
    rgb = mask = b""
    if body.image is not None:
        size, rgb, mask = await given_picture(card.sizes, size, body.image, body.mask, transparent)
    elif body.mask is not None:
        raise InvalidField("mask", "mask says where a given image is to change, and there is no image")
    width, height = size or card.sizes.default
    return ImageWork(prompt, width, height, body.negative_prompt or "", preview_every, rgb, mask, body.adapters())


def _size(card: ModelCard, rule: SizeRule, text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not rule.allows(*size):
        raise InvalidField("size", f"{card.name} cannot make {text!r:.80}; it makes: {rule.describe()}")
    return size


LONGEST_CAPTION = 16384
PHOTO_STRENGTH = 0.8
"""How far a given picture changes where a request does not say: much, and still itself."""


def image_parameters(
    choice: dict[str, Any] | None, body: PictureFields, steps: int | None = None,
    guidance: float | None = None, strength: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The procedure with diffusers' names for its parameters folded in. Raises InvalidField when both disagree, or when the
    strength leaves nothing of a given picture, or nothing to do."""
    out = dict(choice or {})
    diffusers = ("num_inference_steps", "guidance_scale", "strength")
    for param, name, value in zip(diffusers, ("steps", "guidance", "strength"), (steps, guidance, strength), strict=True):
        if value is None:
            continue
        if name in out and out[name] != value:
            raise InvalidField(param, f"{param} {value} contradicts procedure.{name} {out[name]}")
        out[name] = value
    param = "strength" if strength is not None else "procedure.strength"
    if body.image is None and out.get("strength", 1.0) != 1.0:
        raise InvalidField(param, "strength says how far a given image may change, and there is no image")
    if body.image is not None and body.mask is None:
        out.setdefault("strength", PHOTO_STRENGTH)
        if out["strength"] == 1.0:
            raise InvalidField(param, "strength 1 leaves nothing of the image: leave the image out, or give a mask")
    return out


def _check_caption(service: Service, card: ModelCard, text: str, param: str) -> None:
    """Raises InvalidField for a caption that a model of few words cannot read, or that takes long to be cut to what one of many
    words reads of it."""
    if not card.vocab_size:
        if len(text) > LONGEST_CAPTION:
            raise InvalidField(param, f"{param} has {len(text)} characters; captions have at most {LONGEST_CAPTION}")
        return
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


def check_n(service: Service, n: int, param: str = "n") -> None:
    if n > service.settings.max_n:
        raise ApiError(400, f"{param} {n} is more than this server allows ({service.settings.max_n})", param, "invalid_value")
