"""The loop that trains heads for a decoder that stays as it is: they learn the decoder's own distribution."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from service.training.checkpointing import load_training_state, save_training_state
from service.training.evaluate_heads import HeadScore, score_heads
from service.training.heads_folder import KINDS, new_heads, write_heads
from service.training.heads_objective import head_losses
from service.training.learner import Learner
from service.training.optimizer import Schedule, SplitOptimizer
from service.training.precision import training_precision
from service.training.text_data import TextCorpus, even_windows, random_windows, step_generator, windows_of_rows
from service.training.text_model_folder import read_text_model
from service.training.text_sampling import sample_causal
from service.training.training_loop import run_training

SAMPLE_PROMPT = 64
SAMPLE_BATCH = 128
SAMPLE_TEMPERATURES = (1.0, 0.8, 1.0, 0.2)
VALIDATION_ROWS = 16


@dataclass(frozen=True)
class HeadTrainingOptions:
    """One run. Lengths are in tokens; `depths`: how far a draft is unrolled. `samples` texts that the model writes after prompts
    from the corpus, at several temperatures, are half of what is learnt from; the corpus is the other half.

    `steps` fixes the schedule and must not change when a run is resumed. Training state and metrics go to `out`/training,
    the averaged weights to `out`.
    """

    model: Path
    text: Path
    out: Path
    kind: str
    steps: int = 1000
    depths: int = 5
    rows: int = 8
    length: int = 256
    samples: int = 512
    matrix_rate: float = 5e-3
    other_rate: float = 3e-3
    ema_decay: float = 0.99
    warmup_steps: int = 20
    decay_fraction: float = 0.6
    seed: int = 0
    evaluate_every: int = 100
    evaluation_rows: int = 32
    resume: bool = False
    stop_after: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.depths < 1 or self.rows < 2 or self.samples < 1:
            raise ValueError("depths and samples must be at least 1, rows at least 2")
        if self.out.resolve() == self.model.resolve():
            raise ValueError(f"the heads' folder is the model's, {self.model}, which they would overwrite")

    def identity(self) -> dict[str, Any]:
        """What must agree between a run and the one that it resumes."""
        free = {"model", "text", "out", "resume", "stop_after", "threads", "evaluate_every", "evaluation_rows"}
        return {name: value for name, value in asdict(self).items() if name not in free}


class HeadTrainer:
    """The frozen decoder, and the heads that learn."""

    def __init__(self, options: HeadTrainingOptions) -> None:
        self.options = options
        self.target, tokenizer = read_text_model(options.model)
        self.target.requires_grad_(False)
        self.usable = min(tokenizer.get_vocab_size(with_added_tokens=False), self.target.config.vocab_size)
        self.corpus = TextCorpus.from_file(options.text, tokenizer)
        self.heads = new_heads(options.kind, self.target.config, options.depths)
        self.heads.initialise(self.target, torch.Generator().manual_seed(options.seed))
        optimizer = SplitOptimizer(
            self.heads, Schedule(options.steps, options.warmup_steps, options.decay_fraction),
            matrix_rate=options.matrix_rate, other_rate=options.other_rate,
        )  # fmt: skip
        state_path = options.out / "training" / "state.pt"
        self.learner = Learner(self.heads, optimizer, options.ema_decay, state_path, options.identity())
        self.average = self.learner.average
        even_windows(self.corpus.validation, 1, SAMPLE_PROMPT - 1)  # it is long enough to score the heads on
        self.learner.begin(options.resume)
        self.samples = self._read_samples()

    @property
    def step(self) -> int:
        return self.learner.step

    def train_step(self) -> dict[str, float]:
        """One optimiser step on fresh windows, half of them from the model's own texts."""
        options = self.options
        generator = step_generator(options.seed, self.step)
        own = options.rows // 2
        windows = random_windows(self.corpus.training, options.rows - own, options.length - 1, generator)
        tokens = torch.cat((windows, windows_of_rows(self.samples, own, options.length - 1, generator)))
        with training_precision():
            losses = head_losses(self.heads, self.target, tokens, options.depths)
        self.learner.learn(losses.loss)
        return {"loss": losses.loss.item(), "first": losses.agreement[0], "last": losses.agreement[-1]}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The averaged weights on fixed windows of the last tenth."""
        tokens = even_windows(self.corpus.validation, VALIDATION_ROWS, self._validation_length() - 1)
        with self.average.applied_to(self.heads), training_precision():
            losses = head_losses(self.heads, self.target, tokens, self.options.depths)
        depths = {f"agreement_{depth}": value for depth, value in enumerate(losses.agreement, 1)}
        return {"validation_loss": losses.loss.item(), **depths}

    def evaluate(self, temperatures: tuple[float, ...] = (0.0, 0.8, 1.0)) -> list[HeadScore]:
        """The averaged weights as drafters on texts that the decoder writes after prompts of the last tenth."""
        with self.average.applied_to(self.heads):
            return [
                score_heads(
                    self.heads, self.target, self.corpus.validation, temperature, self.options.depths,
                    self.options.evaluation_rows, usable=self.usable,
                )
                for temperature in temperatures
            ]  # fmt: skip

    def save(self) -> None:
        self.learner.save()

    def write(self, scores: Mapping[str, float] | None) -> None:
        """The averaged heads as a folder, whatever the scores."""
        json_ = json.loads((self.options.model / "config.json").read_text())
        write_heads(self.options.out, self.heads, self.average.weights, json_)

    def _validation_length(self) -> int:
        return min(self.options.length, len(self.corpus.validation) - 1)

    def _read_samples(self) -> Tensor:
        """Texts of the decoder, int64 [samples, prompt + length], written once and kept beside the state."""
        path = self.options.out / "training" / "samples.pt"
        if not self.options.resume:
            save_training_state(path, {"samples": self._write_samples()})
        return load_training_state(path)["samples"].long()

    def _write_samples(self) -> Tensor:
        options = self.options
        generator = step_generator(options.seed, options.steps)
        prompts = random_windows(self.corpus.training, options.samples, SAMPLE_PROMPT - 1, generator)
        texts = []
        for i, batch in enumerate(tqdm(prompts.split(SAMPLE_BATCH), desc="samples", unit="batch")):
            temperature = SAMPLE_TEMPERATURES[i % len(SAMPLE_TEMPERATURES)]
            length = max(1, options.length - SAMPLE_PROMPT + 1)
            written = sample_causal(self.target, batch, length, temperature, generator, self.usable)
            texts.append(torch.cat((batch, written.tokens), dim=1))
        return torch.cat(texts).int()


def train_heads(options: HeadTrainingOptions) -> HeadTrainer:
    """Train to `options.steps`, or until SIGTERM or SIGINT or `stop_after` steps; state and heads are written either way."""
    torch.set_num_threads(options.threads)
    trainer = HeadTrainer(options)
    run_training(trainer, options.out, options.steps, options.evaluate_every, stop_after=options.stop_after)
    return trainer
