"""The distillation of a velocity into a flow map: a student learns, from its teacher alone, to jump along the teacher's paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from service.training.distillation_pair import read_pair
from service.training.flow_objectives import (
    OBJECTIVES,
    FlowMap,
    Objective,
    consistency_residual,
    lagrangian_residual,
    landing,
    meanflow_residual,
    row_losses,
    self_consistency_residual,
    trajectory_residual,
)
from service.training.learner import Learner
from service.training.optimizer import Schedule, SplitOptimizer
from service.training.precision import training_device, training_precision
from service.training.text_data import step_generator
from service.training.training_loop import run_training
from service.training.trajectories import (
    BATCH,
    LEGS,
    PATH_SALT,
    Captions,
    Jumps,
    PathStarts,
    TrajectoryBank,
    guided_velocity,
    joined_rows,
)

HELD_OUT_SEED = 1_000_003
JUMP_COUNTS = (1, 2, 4, 8)


@dataclass(frozen=True)
class DistillationOptions:
    """One run. States, guidance and conditions come from paths of the teacher, so no data is needed.

    objective: what jumps learn from, see flow_objectives. difference: take its time derivatives as differences of this width,
        in place of forward mode. power: how far a row's loss is divided by itself.
    rows: a step; the share `velocity_share` of them keeps the velocity u(x, t, t), half of these at guidance 1 with
        `condition_dropout` of the conditions left out, half at the guidance of a path.
    guidance: the scales that the student learns as an input; None: the teacher's own range.
    paths, paths_a_step: of the teacher that are kept, and that are new in every step; with `only_correct`, those that
        end in a picture of what was asked, where the model has a checker (of 16 none of which does, all). held_out_paths: to
        validate on.
    """

    teacher: Path
    out: Path
    objective: Objective = "trajectory"
    steps: int = 1000
    rows: int = 64
    velocity_share: float = 0.25
    condition_dropout: float = 0.1
    guidance: tuple[float, float] | None = None
    difference: float | None = None
    power: float = 0.0
    matrix_rate: float = 1.5e-3
    other_rate: float = 7.5e-4
    average_decay: float = 0.99
    warmup_steps: int = 20
    decay_fraction: float = 0.5
    paths: int = 512
    paths_a_step: int = 2
    only_correct: bool = False
    held_out_paths: int = 32
    evaluate_every: int = 100
    seed: int = 0
    resume: bool = False
    stop_after: int | None = None
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, not {self.objective!r}")
        for name in ("paths", "held_out_paths"):
            if getattr(self, name) < 1 or getattr(self, name) % BATCH:
                raise ValueError(f"{name} must be a multiple of {BATCH}, not {getattr(self, name)}")
        if not 0 < self.velocity_rows < self.rows:
            raise ValueError(f"a velocity_share of {self.velocity_share} leaves nothing to learn for velocity or jumps")
        if self.difference is not None and not 0.0 < self.difference < 0.1:
            raise ValueError(f"difference must be between 0 and 0.1, not {self.difference}")
        if self.out.resolve() == self.teacher.resolve():
            raise ValueError(f"the student's folder is the teacher's, {self.teacher}, which it would overwrite")

    @property
    def velocity_rows(self) -> int:
        return round(self.rows * self.velocity_share)

    def identity(self) -> dict[str, Any]:
        """What must agree between a run and the one that it resumes."""
        free = {"teacher", "out", "resume", "stop_after", "threads", "device", "evaluate_every", "held_out_paths"}
        values = asdict(self) | {"guidance": None if self.guidance is None else list(self.guidance)}
        values["kind of device"] = self.device.split(":")[0]  # which has random numbers of its own
        return {name: value for name, value in values.items() if name not in free}


class Distiller:
    """Teacher, student and the paths of the one that the other learns from."""

    def __init__(self, options: DistillationOptions) -> None:
        self.options = options
        self.device = training_device(options.device)
        torch.manual_seed(options.seed)
        self.pair = read_pair(options.teacher, options.guidance, self.device)
        self.student = self.pair.student
        optimizer = SplitOptimizer(
            self.student, Schedule(options.steps, options.warmup_steps, options.decay_fraction),
            matrix_rate=options.matrix_rate, other_rate=options.other_rate, weight_decay=0.02,
        )  # fmt: skip
        state_path = options.out / "training" / "state.pt"
        self.learner = Learner(self.student, optimizer, options.average_decay, state_path, options.identity())
        self.learner.begin(options.resume)
        self.average = self.learner.average
        if options.only_correct and self.pair.right is None:
            raise ValueError(f"only_correct: nothing can say which pictures of {options.teacher} are correct")
        self.bank = self._bank(options.seed, options.paths, options.only_correct)
        self.held_out = self._bank(options.seed + HELD_OUT_SEED, options.held_out_paths)

    @property
    def step(self) -> int:
        return self.learner.step

    def train_step(self) -> dict[str, float]:
        """One optimiser step; returns the mean losses of the jumps and of the velocity."""
        options, generator = self.options, step_generator(self.options.seed, self.step)
        with sdpa_kernel(SDPBackend.MATH), training_precision(self.device):
            self.bank.advance(options.paths + self.step * options.paths_a_step)
            jumps = row_losses(self._jump_residual(options.rows - options.velocity_rows, generator), options.power)
            velocity = row_losses(self._velocity_residual(options.velocity_rows, generator), options.power)
        self.learner.learn((jumps.sum() + velocity.sum()) / options.rows)
        return {"jumps": jumps.mean().item(), "velocity": velocity.mean().item()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """How far the averaged weights are from the teacher on paths that are not trained on.

        error1 to error8: mean square of what so many jumps miss a path's end by, as a share of the end's mean square.
        velocity_error: the same of the velocity at guidance 1, over all points of the paths.
        """
        paths = torch.arange(self.options.held_out_paths)
        with self.average.applied_to(self.student), sdpa_kernel(SDPBackend.MATH), training_precision(self.device):
            self.held_out.advance(len(paths))
            errors = {f"error{count}": self._jump_error(paths, count) for count in JUMP_COUNTS}
            starts = [self.held_out.jumps(paths, torch.full_like(paths, i), paths * 0 + LEGS) for i in range(LEGS)]
            return errors | {"velocity_error": sum(map(self._velocity_error, starts)) / LEGS}

    def save(self) -> None:
        self.learner.save()

    def write(self, scores: Mapping[str, float] | None) -> None:
        """The averaged weights as a model folder, whatever the scores."""
        self.pair.write(self.options.out, self.average.weights)

    def _jump_residual(self, count: int, generator: torch.Generator) -> Tensor:
        options, objective = self.options, self.options.objective
        if objective == "consistency":
            to_data, any_ = self.bank.draw_to_data(count // 2, generator), self.bank.draw(count - count // 2, generator)
            jumps = joined_rows([to_data, any_])
        else:
            jumps = self.bank.draw(count, generator)
        u, x, t, s = self._map(jumps), jumps.x, jumps.t, jumps.s
        v = partial(self._guided, guidance=jumps.guidance, text=jumps.text)
        match objective:
            case "trajectory":
                return trajectory_residual(u, x, t, s, jumps.end)
            case "meanflow":
                return meanflow_residual(u, v, x, t, s, options.difference)
            case "lagrangian":
                return lagrangian_residual(u, v, x, t, s, options.difference)
            case "self_consistency":
                return self_consistency_residual(u, u, x, t, (t + s) / 2, s)
            case "consistency":
                return consistency_residual(u, u, v, x, t, torch.maximum(s, t - 1 / LEGS), s)

    def _velocity_residual(self, count: int, generator: torch.Generator) -> Tensor:
        at = self.bank.draw_to_data(count, generator)
        plain = torch.arange(count, device=self.device) < count // 2
        dropped = plain & (torch.rand(count, generator=generator) < self.options.condition_dropout).to(self.device)
        text = torch.where(dropped[:, None], self._empty(at.text).empty, at.text)
        guidance = torch.where(plain, 1.0, at.guidance)
        target = self._guided(at.x, at.t, guidance=guidance, text=text)
        return self.student(at.x, at.t, at.t, guidance, text) - target

    def _map(self, jumps: Jumps) -> FlowMap:
        return lambda x, t, s: self.student(x, t, s, jumps.guidance, jumps.text)

    def _guided(self, x: Tensor, t: Tensor, *, guidance: Tensor, text: Tensor) -> Tensor:
        return guided_velocity(self.pair.teacher, x, t, guidance, self._empty(text))

    def _empty(self, text: Tensor) -> Captions:
        """`text` beside the empty condition, padded to its length."""
        return Captions(text, F.pad(self.pair.empty, (0, text.shape[1] - 1)).expand_as(text))

    def _jump_error(self, paths: Tensor, count: int) -> float:
        legs = LEGS // count
        x = self.held_out.points[paths, 0]
        for start in range(0, LEGS, legs):
            jumps = self.held_out.jumps(paths, torch.full_like(paths, start), torch.full_like(paths, start + legs))
            x = landing(x, jumps.t - jumps.s, self._map(jumps)(x, jumps.t, jumps.s).float())
        return _relative(x, jumps.end)

    def _velocity_error(self, at: Jumps) -> float:
        ones = torch.ones_like(at.t)
        found = self.student(at.x, at.t, at.t, ones, at.text).float()
        return _relative(found, self.pair.teacher(at.x, at.t, at.t, ones, at.text).float())

    def _bank(self, seed: int, capacity: int, only_correct: bool = False) -> TrajectoryBank:
        pair = self.pair

        def conditions(first: int, count: int) -> Captions:
            return pair.conditions((seed, PATH_SALT + first), count)

        def right(first: int, ends: Tensor) -> list[bool]:
            assert pair.right is not None
            return pair.right((seed, PATH_SALT + first), ends)

        starts = PathStarts(conditions, pair.shape, pair.condition_tokens, pair.guidance_range, seed, self.device)
        return TrajectoryBank(partial(guided_velocity, pair.teacher), starts, capacity, right if only_correct else None)


def distill(options: DistillationOptions) -> Distiller:
    """Train to `options.steps`, or until SIGTERM or SIGINT or `stop_after` steps; state and student are written either way."""
    torch.set_num_threads(options.threads)
    distiller = Distiller(options)
    run_training(distiller, options.out, options.steps, options.evaluate_every, stop_after=options.stop_after)
    return distiller


def _relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).square().mean() / wanted.square().mean()).item()
