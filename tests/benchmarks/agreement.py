"""Whether a contestant computes the model that all are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tests.benchmarks.contestant import Prompt, Stream

TOLERANCE = 0.25
"""How far below the likeliest token's logit a chosen one may lie, in standard deviations of the logits: at most a few of
many thousand tokens are that near. Rounding moves a logit by some hundredths, a wrongly computed layer by whole units."""


@torch.inference_mode()
def largest_gap(folder: Path, pairs: Sequence[tuple[Prompt, Stream]]) -> float:
    """The largest distance between a chosen token's logit and the likeliest one's, in standard deviations of the logits that
    transformers computes in float32 for the same text; 0 when every chosen token is the likeliest."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    largest = 0.0
    for prompt, stream in pairs:
        text = torch.tensor([[*prompt.tokens, *stream.tokens]])
        logits = model(text[:, :-1]).logits[0, len(prompt.tokens) - 1 :]
        chosen = logits.gather(1, torch.tensor(stream.tokens)[:, None])[:, 0]
        largest = max(largest, float(((logits.amax(1) - chosen) / logits.std(1)).max()))
    return largest
