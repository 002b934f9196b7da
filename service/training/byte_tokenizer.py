"""A byte-level tokeniser without merges: token i is byte i, so that every input can be encoded."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
END_OF_TEXT_ID = 256
MASK_ID = 257
VOCABULARY_SIZE = 264

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ '[' + message['content'] + ']\\n\\n' }}"
    "{%- elif message['role'] == 'user' -%}{{ 'First Citizen:\\n' + message['content'] + '\\n\\n' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ 'Second Citizen:\\n' + message['content'] + '\\n\\n' }}"
    "{%- else -%}{{ raise_exception('roles are system, user and assistant, not ' + message['role']) }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Second Citizen:\\n' }}{%- endif -%}"
)


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in GPT-2's byte-level alphabet, by byte value."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    codes = {byte: byte for byte in printable} | {byte: 256 + i for i, byte in enumerate(others)}
    return [chr(codes[byte]) for byte in range(256)]


def byte_tokenizer() -> Tokenizer:
    """256 bytes, then the end of a text and the mask; the vocabulary of the network is padded to 264."""
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True), AddedToken(MASK, special=True)])
    return tokenizer


def tokenizer_settings(model_max_length: int) -> dict[str, Any]:
    """The content of tokenizer_config.json; its chat template writes messages as the dialogue of a play."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "mask_token": MASK,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
        "chat_template": CHAT_TEMPLATE,
    }
