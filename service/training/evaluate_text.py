"""What a text model is worth: likelihood of held-out text, and its samples under a separately trained judge."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from service.models.decoder import Decoder
from service.training.block_diffusion_objective import DenseAttention
from service.training.text_data import TextCorpus
from service.training.text_model_folder import read_text_model
from service.training.text_sampling import Samples, sample_blocks, sample_causal

PROMPT_LENGTH = 64


@dataclass(frozen=True)
class TextEvaluationOptions:
    """`samples` continuations of `length` tokens, after evenly spaced prompts of 64 tokens from the last tenth."""

    model: Path
    judge: Path | None
    text: Path
    samples: int = 32
    length: int = 256
    temperatures: tuple[float, ...] = (1.0, 0.8)
    thresholds: tuple[float, ...] = (0.9, 0.7, 0.5)
    block_lengths: tuple[int, ...] = (8, 16)
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class SampleScore:
    """One row of the table. `judge_nats` is the judge's mean negative log-likelihood a token."""

    procedure: str
    temperature: float
    forwards_per_token: float
    shared_forwards_per_token: float
    judge_nats: float
    distinct_4: float
    repeated_8: float


@torch.no_grad()
def token_nats(decoder: Decoder, windows: Tensor) -> Tensor:
    """Negative log-likelihood float32 [B, L] of tokens 1..L of windows int64 [B, L + 1], each given those before it."""
    rows, length = windows.shape[0], windows.shape[1] - 1
    positions = torch.arange(length).repeat(rows)
    attention = DenseAttention(rows, length, decoder.config.sliding_window)
    logits = decoder.logits(decoder.hidden(windows[:, :-1].reshape(-1), positions, attention))
    return F.cross_entropy(logits, windows[:, 1:].reshape(-1), reduction="none").view(rows, length)


def held_out_nats(decoder: Decoder, tokens: Tensor, context: int, batch: int = 8) -> float:
    """Mean nats a token over the whole of `tokens`, in order, each scored once after at least `context` others.

    (Fewer only for the first `context` tokens of all; the very first is given, not scored.)
    """
    first = token_nats(decoder, tokens[None, : context + 1])
    total, count = first.sum().double(), first.numel()
    ends = range(context, len(tokens) - 1, context)
    whole = [tokens[end - context : end + context + 1] for end in ends if end + context < len(tokens)]
    rest = [tokens[end - context :] for end in ends if end + context >= len(tokens)]
    batches = [torch.stack(whole[i : i + batch]) for i in range(0, len(whole), batch)] + [w[None] for w in rest]
    for windows in batches:
        scored = token_nats(decoder, windows)[:, context:]
        total, count = total + scored.sum().double(), count + scored.numel()
    assert count == len(tokens) - 1
    return float(total / count)


def distinct_ngrams(rows: Tensor, n: int) -> float:
    """Distinct n-grams of all rows together over their number: 1 when nothing is ever said twice."""
    grams = [tuple(gram) for row in rows.tolist() for gram in zip(*(row[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams)


def repeated_ngrams(rows: Tensor, n: int) -> float:
    """Mean share of a row's n-grams that occurred before in the same row: near 1 for a text that loops."""
    shares = []
    for row in rows.tolist():
        grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return sum(shares) / len(shares)


def judge_nats(judge: Decoder, prompts: Tensor, continuations: Tensor) -> float:
    """The judge's mean nats a token of continuations [B, N] after prompts [B, P]."""
    return float(token_nats(judge, torch.cat((prompts, continuations), dim=1))[:, prompts.shape[1] - 1 :].mean())


def score_samples(options: TextEvaluationOptions, decoder: Decoder, judge: Decoder, held_out: Tensor) -> Iterator[SampleScore]:
    """Held-out text itself, causal samples, then block-diffusion samples, at each temperature."""
    span = PROMPT_LENGTH + options.length
    if len(held_out) < span:
        raise ValueError(f"the last tenth of the text has {len(held_out)} tokens, a sample with its prompt {span}")
    starts = torch.linspace(0, len(held_out) - span, options.samples).long()[:, None]
    passages = held_out[starts + torch.arange(span)]
    prompts, continuations = passages[:, :PROMPT_LENGTH], passages[:, PROMPT_LENGTH:]

    def score(procedure: str, temperature: float, samples: Samples) -> SampleScore:
        return SampleScore(
            procedure,
            temperature,
            samples.forwards / options.length,
            samples.shared_forwards / options.length,
            judge_nats(judge, prompts, samples.tokens),
            distinct_ngrams(samples.tokens, 4),
            repeated_ngrams(samples.tokens, 8),
        )

    yield score("(held-out text)", 1.0, Samples(continuations, options.length, options.length))
    for temperature in options.temperatures:
        generator = torch.Generator().manual_seed(options.seed)
        yield score("causal", temperature, sample_causal(decoder, prompts, options.length, temperature, generator))
        if decoder.config.mask_token_id is None:
            continue
        for block_length, threshold in itertools.product(options.block_lengths, options.thresholds):
            generator = torch.Generator().manual_seed(options.seed)
            samples = sample_blocks(decoder, prompts, options.length, block_length, threshold, temperature, generator)
            yield score(f"block {block_length}, threshold {threshold:g}", temperature, samples)


def evaluate_text(options: TextEvaluationOptions) -> list[SampleScore]:
    """Print the held-out likelihood and, with a judge, a Markdown table of samples; returns the table's rows."""
    torch.set_num_threads(options.threads)
    decoder, tokenizer = read_text_model(options.model)
    held_out = TextCorpus.from_file(options.text, tokenizer).validation
    context = decoder.config.sliding_window or 256
    print(f"held-out text: {held_out_nats(decoder, held_out, context):.4f} nats a token ({len(held_out)} tokens)")
    if options.judge is None:
        return []
    judge, _ = read_text_model(options.judge)
    print(f"judge on held-out text: {held_out_nats(judge, held_out, judge.config.sliding_window or 256):.4f}\n")
    print("| procedure | temperature | forwards/token | with shared commits | judge nats | distinct-4 | repeated-8 |")
    print("|---|---|---|---|---|---|---|")
    scores = []
    for s in score_samples(options, decoder, judge, held_out):
        scores.append(s)
        print(
            f"| {s.procedure} | {s.temperature:g} | {s.forwards_per_token:.3f} | {s.shared_forwards_per_token:.3f} "
            f"| {s.judge_nats:.3f} | {s.distinct_4:.3f} | {s.repeated_8:.3f} |",
            flush=True,
        )
    return scores
