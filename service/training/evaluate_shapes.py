"""Measures of a `shapes` model: do pictures show their held-out captions, and how far are they from real scenes."""

from __future__ import annotations

import datetime
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from PIL import Image
from torch import Tensor

from service.models.flow_serving import KernelFlow
from service.models.quality import QUALITY_FILE, quality_json
from service.models.scene_checker import Verdict, accuracy, check_scenes
from service.models.scenes import MAX_OBJECTS, Scene
from service.procedures.parameters import SamplerParameters
from service.procedures.quality import MeasuredQuality
from service.procedures.registry import PROCEDURES as REGISTRY
from service.procedures.tables import SamplerTable
from service.training.checkpointing import replace_file
from service.training.scene_classifier import SceneClassifier, frechet_distance, load_scene_classifier, picture_features
from service.training.scenes import draw_scenes
from service.training.shapes_sampling import ShapesModel

JUMPS = (1, 2, 4, 8)
STEPS = (10, 20, 50)
PROCEDURES = ("flow_map", "consistency", "euler", "heun", "ddim", "dpmpp_2m")
REFERENCE_SCENES = 5000
FEATURES = f"{REFERENCE_SCENES} fresh scenes, in a small scene classifier's features, each in units of its deviation over them"
QUALITY_CHOICES: tuple[tuple[str, int], ...] = (
    *(("flow_map", jumps) for jumps in (1, 2, 4, 8, 16)),
    *(("consistency", jumps) for jumps in (2, 4, 8)),
    *(("euler", steps) for steps in (4, 8, 16, 50)),
    *(("dpmpp_2m", steps) for steps in (8, 16)),
    ("heun", 8),
)
GRID_COLUMNS: tuple[tuple[str, int], ...] = (
    ("flow_map", 1),
    ("flow_map", 2),
    ("flow_map", 4),
    ("flow_map", 8),
    ("euler", 20),
    ("dpmpp_2m", 20),
)


@dataclass(frozen=True)
class ShapesEvaluationOptions:
    """What `stride train evaluate-shapes` does; `captions` are drawn from the held-out ones."""

    model: Path
    classifier: Path | None = None
    captions: int = 1000
    procedures: tuple[str, ...] = PROCEDURES
    guidance: tuple[float, ...] = (3.0,)
    grid: Path | None = None
    bfloat16: bool = False
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Measurement:
    """One line of the table: shares of captions that are shown correctly, in all, by number of objects (one, two, three),
    and with any relations."""

    procedure: str
    steps: int
    evaluations: int
    guidance: float
    captions: int
    correct: float
    by_objects: tuple[float, ...]
    objects_correct: float
    frechet: float | None
    seconds: float

    def to_json(self) -> str:
        return json.dumps(vars(self))

    def quality(self, date: datetime.date) -> MeasuredQuality:
        """As a row of quality.json; a guided sampler of the velocity evaluates two rows a step."""
        choice = {"name": self.procedure, **sampler_parameters(self.procedure, self.steps), "guidance": self.guidance}
        jumps = self.procedure in ("flow_map", "consistency")
        return MeasuredQuality(
            procedure=choice,
            nfe=self.evaluations * (1 if jumps or self.guidance == 1.0 else 2),
            samples=self.captions,
            date=date,
            frechet=None if self.frechet is None else round(self.frechet, 3),
            correct=round(self.correct, 4),
        )


def sampler_parameters(procedure: str, steps: int) -> dict[str, Any]:
    """Those of a procedure, the others as the service has them; `ddim` has eta = 1, since eta = 0 is `euler` here.

    Raises ValueError for a procedure that is not measured.
    """
    if procedure not in PROCEDURES:
        raise ValueError(f"procedure must be one of {', '.join(PROCEDURES)}, not {procedure!r}")
    return {"steps": steps, "eta": 1.0} if procedure == "ddim" else {"steps": steps}


def sampler_table(procedure: str, steps: int) -> SamplerTable:
    """The table of a procedure with the service's own times."""
    parameters = msgspec.convert(sampler_parameters(procedure, steps), REGISTRY[procedure].parameters)
    assert isinstance(parameters, SamplerParameters)
    return parameters.table()


def evaluate_shapes(options: ShapesEvaluationOptions) -> list[Measurement]:
    """Measure, print one JSON line a measurement, and draw the grid where one is asked for."""
    torch.set_num_threads(options.threads)
    model = ShapesModel.load(options.model)
    scenes = draw_scenes((options.seed, 1), options.captions, held_out=True).scenes
    reality = Reality.load(options.classifier, (options.seed, 2)) if options.classifier else None
    measurements = [_measure_reality(options.captions, reality, options.seed)]
    print(measurements[0].to_json(), flush=True)
    if options.bfloat16:
        model = model.served(options.threads)
        if isinstance(model.evaluator, KernelFlow):
            torch.set_num_threads(1)  # the kernel brings its own threads
    for procedure in options.procedures:
        for steps in JUMPS if procedure in ("flow_map", "consistency") else STEPS:
            for guidance in options.guidance:
                measurements.append(_measure(model, scenes, procedure, steps, guidance, reality, options.seed))
                print(measurements[-1].to_json(), flush=True)
    if options.grid:
        draw_grid(model, options.grid, options.guidance[0])
    return measurements


def measure_quality(options: ShapesEvaluationOptions) -> list[Measurement]:
    """Measure `QUALITY_CHOICES` at the first of the scales of guidance, print a line each, and write the model's quality.json."""
    torch.set_num_threads(options.threads)
    model = ShapesModel.load(options.model)
    scenes = draw_scenes((options.seed, 1), options.captions, held_out=True).scenes
    reality = Reality.load(options.classifier, (options.seed, 2)) if options.classifier else None
    if options.bfloat16:
        model = model.served(options.threads)
    measurements = []
    for procedure, steps in QUALITY_CHOICES:
        measurements.append(_measure(model, scenes, procedure, steps, options.guidance[0], reality, options.seed))
        print(measurements[-1].to_json(), flush=True)
    today = datetime.date.today()
    rows = [measurement.quality(today) for measurement in measurements]
    replace_file(options.model / QUALITY_FILE, quality_json(FEATURES if reality else "not measured", rows))
    return measurements


@dataclass(frozen=True)
class Reality:
    """Fresh scenes as features [N, D] of a scene classifier, in units of each feature's deviation over real scenes.

    A feature that real scenes hardly move has no unit, and is left out: one odd picture would be millions of them away.
    """

    classifier: SceneClassifier
    features: Tensor
    deviation: Tensor
    alive: Tensor

    @classmethod
    def load(cls, path: Path, seed: tuple[int, ...]) -> Reality:
        classifier = load_scene_classifier(path)
        features = picture_features(classifier, draw_scenes(seed, REFERENCE_SCENES).images)
        deviation = features.std(0)
        alive = deviation > 0.01 * deviation.median()
        return cls(classifier, features[:, alive] / deviation[alive], deviation[alive], alive)

    def distance(self, pictures: Tensor) -> float:
        """Fréchet distance of pictures [N, 3, 32, 32] to the scenes."""
        features = picture_features(self.classifier, pictures)[:, self.alive]
        return frechet_distance(features / self.deviation, self.features)


def _measure(
    model: ShapesModel,
    scenes: tuple[Scene, ...],
    procedure: str,
    steps: int,
    guidance: float,
    reality: Reality | None,
    seed: int,
) -> Measurement:
    table = sampler_table(procedure, steps)
    begin = time.monotonic()
    pictures = model.sample([scene.caption for scene in scenes], table, guidance, seed)
    seconds = time.monotonic() - begin
    return _judge(pictures, scenes, procedure, (steps, len(table)), guidance, reality, seconds)


def _measure_reality(count: int, reality: Reality | None, seed: int) -> Measurement:
    """What the measures say of `count` real scenes with captions of their own: the best that a model can do."""
    begin = time.monotonic()
    batch = draw_scenes((seed, 3), count)
    return _judge(batch.images, batch.scenes, "real scenes", (0, 0), 1.0, reality, time.monotonic() - begin)


def _judge(
    pictures: Tensor,
    scenes: tuple[Scene, ...],
    procedure: str,
    steps_and_evaluations: tuple[int, int],
    guidance: float,
    reality: Reality | None,
    seconds: float,
) -> Measurement:
    verdicts = check_scenes(pictures, scenes)
    return Measurement(
        procedure,
        *steps_and_evaluations,
        guidance,
        len(scenes),
        _share([verdict.correct for verdict in verdicts]),
        shares_by_objects(verdicts, scenes),
        _share([verdict.objects_correct for verdict in verdicts]),
        reality.distance(pictures) if reality else None,
        seconds,
    )


def shares_by_objects(verdicts: list[Verdict], scenes: tuple[Scene, ...]) -> tuple[float, ...]:
    """Share of correct pictures among the scenes with one, two and three objects; nan where there is none."""
    numbers = range(1, MAX_OBJECTS + 1)
    pairs = list(zip(verdicts, scenes, strict=True))
    return tuple(_share([v.correct for v, scene in pairs if len(scene.objects) == number]) for number in numbers)


def _share(correct: list[bool]) -> float:
    return sum(correct) / len(correct) if correct else math.nan


def quick_accuracy(model: ShapesModel, captions: int, *, with_flow_map: bool, guidance: float = 3.0) -> dict[str, float]:
    """Accuracy during training: Euler with 16 steps, by number of objects, and 1 to 8 jumps of the flow map."""
    scenes = draw_scenes((7, 7), captions, held_out=True).scenes
    texts = [scene.caption for scene in scenes]
    pictures = model.sample(texts, sampler_table("euler", 16), guidance, seed=7)
    verdicts = check_scenes(pictures, scenes)
    results = {"euler16": _share([verdict.correct for verdict in verdicts])}
    for number, share in enumerate(shares_by_objects(verdicts, scenes), start=1):
        results[f"objects{number}"] = share
    if with_flow_map:
        for jumps in JUMPS:
            pictures = model.sample(texts, sampler_table("flow_map", jumps), guidance, seed=7)
            results[f"jumps{jumps}"] = accuracy(pictures, scenes)
    return results


def draw_grid(model: ShapesModel, path: Path, guidance: float, rows: int = 10, scale: int = 3) -> None:
    """A PNG with a row a held-out caption and a column an entry of `GRID_COLUMNS`, from the same noise, enlarged."""
    captions = [scene.caption for scene in draw_scenes((3, 3), rows, held_out=True).scenes]
    columns = [model.sample(captions, sampler_table(name, steps), guidance, seed=3) for name, steps in GRID_COLUMNS]
    cells = ((torch.stack(columns, 1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    cells = torch.nn.functional.pad(cells, (1, 1, 1, 1), value=200)
    sheet = cells.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    image = Image.fromarray(sheet.numpy())
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)
