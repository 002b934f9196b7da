"""The training loop of the `shapes` model: a velocity first, then the flow map that shortens its trajectories."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from kernels.capture import CudaCapture
from service.models.flow_transformer import FlowTransformer, FlowTransformerConfig
from service.training.caption_tokenizer import MAX_TEXT_TOKENS, NULL, PAD, SPECIAL_TOKENS, build_caption_tokenizer
from service.training.captured import CapturedErrors
from service.training.checkpointing import check_nothing_there, replace_file, save_training_state, state_to_resume
from service.training.drawing import PathCaptions, TrainingScenes, drawn_ahead
from service.training.ema import WeightAverage
from service.training.evaluate_shapes import quick_accuracy
from service.training.optimizer import Schedule, SplitOptimizer
from service.training.own_jumps import OwnJumps
from service.training.precision import training_attention, training_device, training_precision
from service.training.shapes_objective import ScenePaths, Targets, TrainingBatch, squared_errors, velocity_targets
from service.training.shapes_sampling import ShapesModel
from service.training.training_loop import run_training
from service.training.trajectories import Jumps, PathStarts, TrajectoryBank, joined_rows


@dataclass(frozen=True)
class ShapesTrainingOptions:
    """What `stride train shapes` does; `steps` are of the velocity stage, `flow_map_steps` follow.

    `start` is the folder of a model of the same shape to begin with, in place of fresh weights. `workers` are processes that
    draw scenes ahead of time, and where there are any, two more draw those of paths; without, they are drawn between steps.
    """

    out: Path
    start: Path | None = None
    steps: int = 4800
    flow_map_steps: int = 1200
    batch_size: int = 96
    width: int = 256
    depth: int = 6
    heads: int = 4
    patch_size: int = 8
    patch_margin: int = 0
    matrix_rate: float = 4e-3
    other_rate: float = 2e-3
    flow_map_rate_factor: float = 0.5
    average_decay: float = 0.998
    flow_map_average_decay: float = 0.995
    flow_map_decay_fraction: float = 0.5
    caption_dropout: float = 0.1
    noise_bias: float = 1.9
    velocity_share: float = 1 / 3
    paths: int = 1024
    paths_a_step: int = 4
    paths_at_once: int = 16
    own_share: float = 0.5
    own_paths: int = 256
    evaluate_every: int = 250
    evaluate_captions: int = 64
    seed: int = 0
    threads: int = 1
    workers: int = 0
    device: str = "cpu"
    resume: bool = False

    def __post_init__(self) -> None:
        if self.paths_at_once < 1:
            raise ValueError(f"paths_at_once must be at least 1, not {self.paths_at_once}")
        for name in ("paths", "own_paths"):
            if getattr(self, name) < 1 or getattr(self, name) % self.paths_at_once:
                raise ValueError(f"{name} must be a multiple of paths_at_once, {self.paths_at_once}, not {getattr(self, name)}")
        if self.evaluate_captions < 1:
            raise ValueError(f"evaluate_captions must be at least 1, not {self.evaluate_captions}")
        if not 0 < self.velocity_rows < self.batch_size:
            raise ValueError(f"a velocity_share of {self.velocity_share} leaves one stage without rows")
        if not 0 <= self.own_rows < self.batch_size - self.velocity_rows:
            raise ValueError(f"an own_share of {self.own_share} leaves no rows for jumps along paths")

    def identity(self) -> dict[str, Any]:
        """What must agree between a run and the one that it resumes."""
        free = {"out", "start", "resume", "threads", "workers", "device", "evaluate_every", "evaluate_captions"}
        values = {name: value for name, value in asdict(self).items() if name not in free}
        return values | {"kind of device": self.device.split(":")[0]}  # which has random numbers of its own

    @property
    def velocity_rows(self) -> int:
        """Rows a step that still learn the velocity in the flow-map stage."""
        return round(self.batch_size * self.velocity_share)

    def velocity_rows_of(self, step: int) -> int:
        """Rows of this step that learn the velocity: in the first stage all."""
        return self.batch_size if step < self.steps else self.velocity_rows

    @property
    def own_rows(self) -> int:
        """Rows a step of the flow-map stage whose jumps begin where the model's own have led."""
        return round((self.batch_size - self.velocity_rows) * self.own_share)


class ShapesTrainer:
    """Network, average, optimiser and step of one run; `step` counts over both stages.

    In the second stage `bank` holds paths of the exact velocity, guided by `teacher`: the average that the first one ended with.
    `own` holds jumps from where the network's own have led, to where that velocity leads from there. On a GPU the passes through
    the network are `captured`.
    """

    bank: TrajectoryBank | None
    own: OwnJumps
    teacher: FlowTransformer

    def __init__(self, options: ShapesTrainingOptions) -> None:
        self.options = options
        self.device = training_device(options.device)
        torch.manual_seed(options.seed)
        self.tokenizer = build_caption_tokenizer()
        self.network = FlowTransformer(
            FlowTransformerConfig(
                vocab_size=self.tokenizer.get_vocab_size(),
                width=options.width,
                depth=options.depth,
                heads=options.heads,
                patch_size=options.patch_size,
                patch_margin=options.patch_margin,
                max_text_tokens=MAX_TEXT_TOKENS,
                pad_token_id=SPECIAL_TOKENS.index(PAD),
                null_token_id=SPECIAL_TOKENS.index(NULL),
                scorers=("scene",),
            )
        )
        if options.start is not None:
            begun = ShapesModel.load(options.start).network
            try:
                self.network.load_state_dict(begun.state_dict())
            except RuntimeError as error:
                other = [name for name, value in vars(begun.config).items() if value != vars(self.network.config)[name]]
                raise ValueError(f"{options.start} is a model of another shape: its {', '.join(other)} differ") from error
        self.network.to(self.device)
        self.average = WeightAverage(self.network, options.average_decay)
        self.step = 0
        self.optimizer = self._velocity_optimizer()
        self.bank = None
        self._batches: Iterator[TrainingBatch] | None = None
        self._losses: list[dict[str, Tensor]] = []
        self.captured: CapturedErrors | None = None
        if self.device.type == "cuda":
            self.captured = CapturedErrors(self.network, MAX_TEXT_TOKENS, CudaCapture(self.device))

    @property
    def total_steps(self) -> int:
        return self.options.steps + self.options.flow_map_steps

    def train_step(self) -> dict[str, Tensor]:
        """One optimiser step; returns the velocity and the flow-map loss (0 in the first stage), means over rows, on the device:
        reading them waits for it."""
        options, flow_map = self.options, self.step >= self.options.steps
        if self.step == options.steps:
            self._enter_flow_map_stage()
        generator = torch.Generator(self.device).manual_seed(options.seed * 1_000_003 + self.step)
        if self._batches is None:
            scenes = TrainingScenes(self.tokenizer, options.seed, options.velocity_rows_of)
            self._batches = drawn_ahead(scenes, range(self.step, self.total_steps), options.workers, self.device)
        batch = next(self._batches).to(self.device)
        with training_attention(self.device), training_precision(self.device):
            targets = [
                velocity_targets(batch, dropout=options.caption_dropout, noise_bias=options.noise_bias, generator=generator)
            ]
            if self.bank is not None:
                targets.append(Targets.of(self._jumps(self.bank, generator)))
        errors = self._errors(joined_rows(targets))
        self.optimizer.step(self.step - options.steps if flow_map else self.step)
        self.average.update(self.network)
        self.step += 1
        velocity, mapped = errors.split([len(targets[0].t), len(errors) - len(targets[0].t)])
        self._losses.append({"velocity": velocity.mean(), "flow_map": mapped.sum() / max(1, len(mapped))})
        return self._losses[-1]

    def _errors(self, at: Targets) -> Tensor:
        """[B]; the parameters have the gradients of their mean."""
        if self.captured is not None:
            return self.captured(at)
        with training_attention(self.device), training_precision(self.device):
            errors = squared_errors(self.network, at)
        errors.mean().backward()
        return errors.detach()

    def _jumps(self, bank: TrajectoryBank, generator: torch.Generator) -> Jumps:
        """Those of a step of the second stage: along paths of the teacher, and from states of the network's own."""
        options = self.options
        new = (self.step - options.steps) * options.paths_a_step
        bank.advance(options.paths + new)
        jumps = bank.draw(options.batch_size - options.velocity_rows - options.own_rows, generator)
        if not options.own_rows:
            return jumps
        self.own.advance(options.own_paths + new)
        return joined_rows([jumps, self.own.draw(options.own_rows, generator)])

    def validate(self) -> dict[str, float]:
        """The mean losses since the last evaluation, and what the averaged weights draw correctly."""
        losses = {name: torch.stack([row[name] for row in self._losses]).mean().item() for name in self._losses[0]}
        self._losses.clear()
        model, flow_map = ShapesModel(self.network, self.tokenizer), self.step > self.options.steps
        with self.average.applied_to(self.network), training_precision(self.device):
            return losses | quick_accuracy(model, self.options.evaluate_captions, with_flow_map=flow_map)

    def save(self) -> None:
        save_training_state(self.options.out / "training" / "state.pt", self.state_dict())

    def write(self, scores: Mapping[str, float] | None) -> None:
        """The averaged weights as a model folder, whatever the scores."""
        self.export(self.options.out)

    def state_dict(self) -> dict[str, Any]:
        return {
            "identity": self.options.identity(),
            "step": self.step,
            "teacher": None if self.bank is None else self.teacher.state_dict(),
            "own": None if self.bank is None else self.own.state_dict(),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])
        self._batches = None
        self.average.load_state_dict(state["average"])
        self.average.decay = self.options.average_decay
        if self.step > self.options.steps:
            self._enter_flow_map_stage()
            assert self.bank is not None
            self.teacher.load_state_dict(state["teacher"])
            self.own.load_state_dict(state["own"])
        self.network.load_state_dict(state["network"])
        if self.step != self.options.steps:
            self.optimizer.load_state_dict(state["optimizer"])

    def export(self, folder: Path) -> None:
        """Write the averaged weights as a model folder that the server loads; each file is replaced at once."""
        weights = {name: value.half() for name, value in self.average.weights.items()}
        config = json.dumps(self.network.config.to_json(), indent=2) + "\n"
        replace_file(folder / "config.json", config.encode())
        replace_file(folder / "tokenizer.json", self.tokenizer.to_str(pretty=True).encode())
        replace_file(folder / "model.safetensors", save(weights))

    def _enter_flow_map_stage(self) -> None:
        options, config = self.options, self.network.config
        self.average.copy_to(self.network)
        self.average.decay = options.flow_map_average_decay
        self.optimizer = self._flow_map_optimizer()
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)
        velocity, shape = ScenePaths(self.teacher), (config.channels, config.image_size, config.image_size)

        def starts() -> PathStarts:
            captions = PathCaptions(self.tokenizer, options.seed, min(options.workers, 1), self.device)
            learnt = config.max_text_tokens, config.guidance_range
            return PathStarts(captions, shape, *learnt, options.seed, self.device, options.paths_at_once)

        self.bank = TrajectoryBank(velocity, starts(), options.paths)
        self.own = OwnJumps(self.network, velocity, starts(), options.own_paths)

    def _velocity_optimizer(self) -> SplitOptimizer:
        options = self.options
        schedule = Schedule(options.steps, warmup_steps=min(60, options.steps // 10), decay_fraction=0.6)
        return SplitOptimizer(
            self.network, schedule, matrix_rate=options.matrix_rate, other_rate=options.other_rate, weight_decay=0.02
        )

    def _flow_map_optimizer(self) -> SplitOptimizer:
        options = self.options
        warmup_steps = min(20, options.flow_map_steps // 10)
        schedule = Schedule(options.flow_map_steps, warmup_steps, options.flow_map_decay_fraction)
        return SplitOptimizer(
            self.network,
            schedule,
            matrix_rate=options.matrix_rate * options.flow_map_rate_factor,
            other_rate=options.other_rate * options.flow_map_rate_factor,
            weight_decay=0.02,
        )


def train_shapes(options: ShapesTrainingOptions) -> None:
    """Train, evaluating and saving at intervals, and leave the model in `options.out`; a signal saves and stops."""
    torch.set_num_threads(options.threads)
    trainer = ShapesTrainer(options)
    state_path = options.out / "training" / "state.pt"
    if options.resume:
        trainer.load_state_dict(state_to_resume(state_path, options.identity()))
    else:
        check_nothing_there(state_path)
    run_training(
        trainer, options.out, trainer.total_steps, options.evaluate_every, evaluate_at={options.steps, trainer.total_steps}
    )
