"""Tokenisers over a few letters, in the formats of CLIP's, T5's and Qwen's."""

from __future__ import annotations

import string

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, GemmaTokenizer, Qwen2Tokenizer, T5Tokenizer

LETTERS = string.ascii_lowercase + string.digits + ".,-"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def clip_tokenizer() -> CLIPTokenizer:
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    return T5Tokenizer(vocab=[(piece, -1.0 if i > 2 else 0.0) for i, piece in enumerate(pieces)], extra_ids=0)


def qwen_tokenizer() -> Qwen2Tokenizer:
    words = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    tokenizer = Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], chat_template=CHAT)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def gemma_tokenizer(text: str) -> GemmaTokenizer:
    """Words of `text` are mostly one token each."""
    words = {"▁" + word for word in text.split()}
    pieces = {word[:end] for word in words for end in range(2, len(word) + 1)}
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *string.ascii_letters, *string.digits, *".,-'->():"]
    vocabulary = dict.fromkeys([*letters, *sorted(pieces)])
    merges = [(piece[:-1], piece[-1]) for piece in sorted(pieces, key=lambda piece: (len(piece), piece))]
    return GemmaTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary)}, merges=merges, add_bos_token=True)
