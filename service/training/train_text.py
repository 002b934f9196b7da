"""The loop that trains the text models: the embedded `shakespeare` and the causal judge that scores its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from service.models.decoder import Decoder, DecoderConfig
from service.training.block_diffusion_objective import NoisedText, TextLosses, noise_text, text_losses
from service.training.byte_tokenizer import END_OF_TEXT_ID, MASK_ID, VOCABULARY_SIZE, byte_tokenizer
from service.training.checkpointing import load_training_state, save_training_state
from service.training.learner import Learner
from service.training.optimizer import Schedule, SplitOptimizer
from service.training.precision import training_precision
from service.training.text_data import TextCorpus, even_windows, random_windows, step_generator, windows_of_rows
from service.training.text_model_folder import read_text_model, write_text_model
from service.training.text_sampling import sample_causal
from service.training.training_loop import run_training

VALIDATION_ROWS = 32
VALIDATION_SEED = 7
SAMPLE_PROMPT = 64
SAMPLE_BATCH = 256


@dataclass(frozen=True)
class TextTrainingOptions:
    """One run. Lengths are in tokens; `masked_weight` 0 trains a purely causal model.

    `steps` fixes the schedule and must not change when a run is resumed. Training state and metrics go to
    `out`/training, the averaged weights to `out`.

    With a `teacher`, the folder of a model of the same shape, training begins with its weights, and blocks are learnt from
    `sample_rows` texts a step that it wrote, after prompts from the corpus, at `sample_temperature` (sequence-level
    distillation, arXiv 1606.07947): what one model writes is less ambiguous than a corpus, so that several of its tokens
    can be told at once (arXiv 1711.02281). Next tokens are still learnt from the corpus, in the other rows.
    """

    text: Path
    out: Path
    steps: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 64
    window: int = 256
    length: int = 256
    rows: int = 12
    block_lengths: tuple[int, ...] = (4, 8, 16, 32)
    masked_weight: float = 1.5
    teacher: Path | None = None
    sample_rows: int = 8
    sample_temperature: float = 0.6
    samples: int = 2048
    dropout: float = 0.0
    matrix_rate: float = 5e-3
    other_rate: float = 3e-3
    ema_decay: float = 0.995
    warmup_steps: int = 40
    decay_fraction: float = 0.6
    seed: int = 0
    evaluate_every: int = 100
    resume: bool = False
    stop_after: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.teacher is not None and not 0 < self.sample_rows < self.rows:
            raise ValueError(f"of {self.rows} rows a step, {self.sample_rows} cannot be the teacher's: both kinds are needed")
        if self.samples <= VALIDATION_ROWS:
            raise ValueError(f"samples must be more than {VALIDATION_ROWS}, which are kept for validation")

    def decoder_config(self) -> DecoderConfig:
        diffusion = self.masked_weight > 0
        return DecoderConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
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
        values = {**asdict(self), "teacher": self.teacher is not None}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if name not in free}


class TextTrainer:
    """A decoder that learns from windows of a text, and from texts of its teacher where it has one."""

    def __init__(self, options: TextTrainingOptions) -> None:
        self.options = options
        self.corpus = TextCorpus.from_file(options.text, byte_tokenizer())
        self.decoder = Decoder(options.decoder_config(), options.dropout)
        if options.teacher is None:
            self.decoder.initialise(torch.Generator().manual_seed(options.seed))
        else:
            self.decoder.load_state_dict(read_text_model(options.teacher)[0].state_dict())
        optimizer = SplitOptimizer(
            self.decoder,
            Schedule(options.steps, options.warmup_steps, options.decay_fraction),
            matrix_rate=options.matrix_rate,
            other_rate=options.other_rate,
        )
        state_path = options.out / "training" / "state.pt"
        self.learner = Learner(self.decoder, optimizer, options.ema_decay, state_path, options.identity())
        self.average = self.learner.average
        self.best = float("inf")
        self._held_out = even_windows(self.corpus.validation, VALIDATION_ROWS, options.length)
        self.best = self.learner.begin(options.resume).get("best", self.best)
        self.samples = self._read_samples() if options.teacher else None

    @property
    def step(self) -> int:
        return self.learner.step

    def train_step(self) -> dict[str, float]:
        """One optimiser step on fresh windows; returns the losses in nats a token."""
        options = self.options
        generator = step_generator(options.seed, self.step)
        rows = options.rows if self.samples is None else options.rows - options.sample_rows
        windows = random_windows(self.corpus.training, rows, options.length, generator, self.decoder.config.bos_token_id)
        blocks = windows
        if self.samples is not None:
            blocks = windows_of_rows(self.samples[VALIDATION_ROWS:], options.sample_rows, options.length, generator)
        noised = self._noise(blocks, generator)
        torch.manual_seed((options.seed << 32) + self.step)
        self.decoder.train()
        with training_precision():
            losses = self._losses(windows, blocks, noised)
        self.learner.learn(losses.causal + options.masked_weight * losses.masked)
        return {"causal": losses.causal.item(), "masked": losses.masked.item()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses of the averaged weights on fixed windows of the last tenth, with fixed noise.

        With a teacher, the masked loss is on texts of its that are not trained on.
        """
        options, generator = self.options, step_generator(VALIDATION_SEED, 0)
        windows = blocks = self._held_out
        if self.samples is not None:
            blocks = self.samples[:VALIDATION_ROWS, -options.length - 1 :]
        noised = self._noise(blocks, generator)
        self.decoder.eval()
        with self.average.applied_to(self.decoder), training_precision():
            losses = self._losses(windows, blocks, noised)
        return {"validation_causal": losses.causal.item(), "validation_masked": losses.masked.item()}

    def write(self, scores: Mapping[str, float] | None) -> None:
        """Export the averaged weights when the training objective is the lowest so far on the validation windows."""
        if scores is None:
            return
        score = scores["validation_causal"] + self.options.masked_weight * scores["validation_masked"]
        if score < self.best:
            self.best = score
            write_text_model(self.options.out, self.decoder.config, self.average.weights)

    def save(self) -> None:
        self.learner.save(best=self.best)

    def _noise(self, windows: Tensor, generator: torch.Generator) -> NoisedText | None:
        if self.options.masked_weight == 0:
            return None
        return noise_text(windows[:, :-1], self.options.block_lengths, MASK_ID, generator)

    def _losses(self, windows: Tensor, blocks: Tensor, noised: NoisedText | None) -> TextLosses:
        """The next-token loss on `windows` and the masked one on `blocks`, in one forward where they are the same."""
        if blocks is windows:
            return text_losses(self.decoder, windows, noised)
        masked = text_losses(self.decoder, blocks, noised, causal=False).masked
        return TextLosses(text_losses(self.decoder, windows, None).causal, masked)

    def _read_samples(self) -> Tensor:
        """Texts of the teacher, int64 [samples, prompt + length], written once and kept beside the state."""
        path = self.options.out / "training" / "samples.pt"
        if not self.options.resume:
            save_training_state(path, {"samples": self._write_samples()})
        return load_training_state(path)["samples"].long()

    def _write_samples(self) -> Tensor:
        """The teacher, whose weights these still are, continues prompts from the corpus, `SAMPLE_BATCH` at a time."""
        options = self.options
        generator = step_generator(options.seed, options.steps)
        prompts = random_windows(self.corpus.training, options.samples, SAMPLE_PROMPT - 1, generator)
        self.decoder.eval()
        texts = []
        for batch in tqdm(prompts.split(SAMPLE_BATCH), desc="samples", unit="batch"):
            written = sample_causal(self.decoder, batch, options.length, options.sample_temperature, generator)
            texts.append(torch.cat((batch, written.tokens), dim=1))
        return torch.cat(texts).short()


def train_text(options: TextTrainingOptions) -> TextTrainer:
    """Train to `options.steps`, or until SIGTERM or SIGINT or `stop_after` steps; the state is saved either way."""
    torch.set_num_threads(options.threads)
    trainer = TextTrainer(options)
    run_training(trainer, options.out, options.steps, options.evaluate_every, stop_after=options.stop_after)
    return trainer
