"""The loop that trains the text models: the embedded `shakespeare` and the causal judge that scores its samples."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from service.models.decoder import Decoder, DecoderConfig
from service.training.block_diffusion_objective import NoisedStretch, noise_stretch, text_losses
from service.training.byte_tokenizer import END_OF_TEXT_ID, MASK_ID, VOCABULARY_SIZE, byte_tokenizer
from service.training.checkpointing import StopSignal, load_training_state, save_training_state
from service.training.ema import WeightAverage
from service.training.optimizer import Schedule, SplitOptimizer
from service.training.progress import TrainingProgress
from service.training.text_data import TextCorpus, even_windows, random_windows, step_generator
from service.training.text_model_folder import write_text_model

VALIDATION_ROWS = 32
VALIDATION_SEED = 7


@dataclass(frozen=True)
class Emphasis:
    """From step `start` on, another mixture: blocks learn more slowly than next tokens, and need the later steps."""

    start: int
    rows: int
    noised_length: int
    masked_weight: float


@dataclass(frozen=True)
class TextTrainingOptions:
    """One run. Lengths are in tokens; `masked_weight` 0 trains a purely causal model.

    `noised_length` is the stretch of each row that is trained as blocks. `steps` fixes the schedule and must not change
    when a run is resumed. Training state and metrics go to `out`/training, the averaged weights to `out`.
    """

    text: Path
    out: Path
    steps: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    head_dim: int = 64
    window: int = 256
    length: int = 384
    noised_length: int = 128
    rows: int = 12
    block_lengths: tuple[int, ...] = (4, 8, 16, 32)
    masked_weight: float = 0.5
    emphasis: Emphasis | None = None
    dropout: float = 0.0
    matrix_rate: float = 5e-3
    other_rate: float = 3e-3
    ema_decay: float = 0.99
    warmup_steps: int = 40
    decay_fraction: float = 0.6
    seed: int = 0
    evaluate_every: int = 100
    resume: bool = False
    stop_after: int | None = None
    threads: int = 1

    def decoder_config(self) -> DecoderConfig:
        diffusion = self.masked_weight > 0
        return DecoderConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            head_dim=self.head_dim,
            sliding_window=self.window,
            mask_token_id=MASK_ID if diffusion else None,
            block_lengths=self.block_lengths if diffusion else (),
            eos_token_id=END_OF_TEXT_ID,
            bos_token_id=END_OF_TEXT_ID,
        )

    def identity(self) -> dict[str, Any]:
        """What must agree between a run and the one that it resumes."""
        free = {"text", "out", "resume", "stop_after", "threads", "evaluate_every"}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items() if name not in free}


class TextTrainer:
    """Weights, their average and the optimiser of one run; `step` is the number of steps taken."""

    def __init__(self, options: TextTrainingOptions) -> None:
        self.options = options
        self.corpus = TextCorpus.from_file(options.text, byte_tokenizer())
        self.decoder = Decoder(options.decoder_config(), options.dropout)
        self.decoder.initialise(torch.Generator().manual_seed(options.seed))
        self.average = WeightAverage(self.decoder, options.ema_decay)
        self.optimizer = SplitOptimizer(
            self.decoder,
            Schedule(options.steps, options.warmup_steps, options.decay_fraction),
            matrix_rate=options.matrix_rate,
            other_rate=options.other_rate,
        )
        self.step = 0
        self.best = float("inf")
        self.state_path = options.out / "training" / "state.pt"
        if options.resume:
            self._load()

    def train_step(self) -> dict[str, float]:
        """One optimiser step on fresh windows; returns the losses in nats a token."""
        options = self.options
        mixture: TextTrainingOptions | Emphasis = options
        if options.emphasis is not None and self.step >= options.emphasis.start:
            mixture = options.emphasis
        generator = step_generator(options.seed, self.step)
        windows = random_windows(self.corpus.training, mixture.rows, options.length, generator, self.decoder.config.bos_token_id)
        stretch = self._noise(windows, mixture.noised_length, generator)
        torch.manual_seed((options.seed << 32) + self.step)
        self.decoder.train()
        with torch.autocast("cpu", torch.bfloat16):
            losses = text_losses(self.decoder, windows, stretch)
        (losses.causal + mixture.masked_weight * losses.masked).backward()
        self.optimizer.step(self.step)
        self.step += 1
        self.average.update(self.decoder)
        return {"causal": losses.causal.item(), "masked": losses.masked.item()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses of the averaged weights on fixed windows of the last tenth, with fixed noise."""
        options = self.options
        windows = even_windows(self.corpus.validation, VALIDATION_ROWS, options.length)
        stretch = self._noise(windows, options.noised_length, step_generator(VALIDATION_SEED, 0))
        self.decoder.eval()
        with self.average.applied_to(self.decoder), torch.autocast("cpu", torch.bfloat16):
            losses = text_losses(self.decoder, windows, stretch)
        return {"validation_causal": losses.causal.item(), "validation_masked": losses.masked.item()}

    def keep_if_best(self, scores: dict[str, float]) -> None:
        """Export the averaged weights when the training objective is the lowest so far on the validation windows."""
        score = scores["validation_causal"] + self.options.masked_weight * scores["validation_masked"]
        if score < self.best:
            self.best = score
            write_text_model(self.options.out, self.decoder.config, self.average.weights)

    def save(self) -> None:
        save_training_state(
            self.state_path,
            {
                "identity": self.options.identity(),
                "step": self.step,
                "best": self.best,
                "weights": self.decoder.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
        )

    def _load(self) -> None:
        state = load_training_state(self.state_path)
        identity = self.options.identity()
        different = sorted(name for name in identity if state["identity"].get(name) != identity[name])
        if different:
            raise ValueError(f"cannot resume {self.state_path}: other values of {', '.join(different)}")
        self.decoder.load_state_dict(state["weights"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]

    def _noise(self, windows: Tensor, length: int, generator: torch.Generator) -> NoisedStretch | None:
        options = self.options
        if options.masked_weight == 0:
            return None
        return noise_stretch(windows[:, :-1], length, options.block_lengths, MASK_ID, generator)


def train_text(options: TextTrainingOptions) -> TextTrainer:
    """Train to `options.steps`, or until SIGTERM or SIGINT or `stop_after` steps; the state is saved either way."""
    torch.set_num_threads(options.threads)
    trainer = TextTrainer(options)
    last = options.steps if options.stop_after is None else min(options.steps, options.stop_after)
    metrics = options.out / "training" / "metrics.jsonl"
    with StopSignal() as stop, TrainingProgress(options.out.name, options.steps, trainer.step, metrics) as progress:
        while trainer.step < last and not stop.requested:
            progress.advance(**trainer.train_step())
            if trainer.step % options.evaluate_every == 0 or trainer.step == options.steps:
                scores = trainer.validate()
                progress.record(trainer.step, **scores)
                trainer.keep_if_best(scores)
                trainer.save()
        trainer.save()
    return trainer
