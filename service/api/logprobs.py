"""Log-probabilities in OpenAI's two shapes. They are the model's own: before temperature, penalties, biases and filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from service.api.text_output import Tokenwise
from service.engine.messages import Logprob

TokenBytes = Callable[[int], bytes]
"""Bytes of a token's text: of a part of a character, where a token is one."""


def chat_logprobs(tokens: Tokenwise, bytes_of: TokenBytes) -> dict[str, Any]:
    """`logprobs` of a chat's choice."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = bytes_of(token)
        return {"token": raw.decode(errors="replace"), "bytes": list(raw), "logprob": logprob}

    content = [
        {**entry(token, logprob.own), "top_logprobs": [entry(*pair) for pair in logprob.top]}
        for token, logprob in zip(tokens.token_ids, tokens.logprobs, strict=True)
        if logprob is not None
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Tokenwise, bytes_of: TokenBytes) -> dict[str, Any]:
    """`logprobs` of a completion's choice; null for a token that has none, the first of a prompt.

    A token that is no whole text is spelt `bytes:\\xe2\\x80`, as OpenAI does. What was drawn is always in `top_logprobs`.
    """

    def name(token: int) -> str:
        raw = bytes_of(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def likeliest(token: int, logprob: Logprob | None) -> dict[str, float] | None:
        return None if logprob is None else {name(other): value for other, value in logprob.top} | {name(token): logprob.own}

    each = list(zip(tokens.token_ids, tokens.logprobs, strict=True))
    return {
        "tokens": [name(token) for token, _ in each],
        "token_logprobs": [None if logprob is None else logprob.own for _, logprob in each],
        "top_logprobs": [likeliest(token, logprob) for token, logprob in each],
        "text_offset": tokens.offsets,
    }
