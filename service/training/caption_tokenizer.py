"""The word-level tokenizer of the scenes' captions, as a `tokenizer.json` of the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from service.models.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES

PAD, NULL, UNKNOWN = "<pad>", "<null>", "<unk>"
SPECIAL_TOKENS = (PAD, NULL, UNKNOWN)  # their ids are 0, 1 and 2
MAX_TEXT_TOKENS = 16


def build_caption_tokenizer() -> Tokenizer:
    """Lower-cased words that carry meaning, each one token, after one `<null>`; an empty caption is `<null>` alone.

    Articles, `of`, `on`, `to` and `background` are dropped: the order of the words says the same.
    """
    words = [*SIZES, *COLOURS, *SHAPES, "left", "right", "above", "below", *BACKGROUNDS]
    vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\bgrey\b"), "gray"),
            normalizers.Replace(Regex(r"\b(an?|the|is|to|of|on|background)\b|[.,;]"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{NULL} $A", pair=None, special_tokens=[(NULL, vocabulary[NULL])]
    )
    tokenizer.enable_truncation(MAX_TEXT_TOKENS)
    tokenizer.enable_padding(pad_id=vocabulary[PAD], pad_token=PAD)
    return tokenizer


def encode_captions(tokenizer: Tokenizer, captions: Sequence[str]) -> Tensor:
    """Ids [N, T], padded to the longest."""
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(captions))])
