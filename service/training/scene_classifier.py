"""A small convolutional network that names what is in a scene; its features give the Fréchet distance of pictures.

Trained on the same scenes by `stride train scene-classifier`; stands in for the Inception network of FID
(arXiv 1706.08500), which knows nothing of coloured shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from service.models.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene
from service.training.checkpointing import StopSignal, replace_file
from service.training.progress import TrainingProgress
from service.training.scenes import draw_scenes

FEATURES = 64


class SceneClassifier(nn.Module):
    """Names what is in pictures [N, 3, 32, 32]: which kinds of object are there, and the background."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 48, 96, FEATURES)
        self.layers = nn.ModuleList(nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths))
        self.mix = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
        self.objects = nn.Linear(FEATURES, len(COLOURS) * len(SHAPES) * len(SIZES))
        self.background = nn.Linear(FEATURES, len(BACKGROUNDS))

    def features(self, images: Tensor) -> Tensor:
        """[N, 3, 32, 32] -> [N, FEATURES]: the strongest answer of each detector, wherever it is."""
        hidden = images
        for layer in self.layers:
            hidden = F.gelu(layer(hidden))
        return F.gelu(self.mix(hidden)).amax((2, 3))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the objects [N, colours * shapes * sizes] and of the background [N, backgrounds]."""
        features = self.features(images)
        return self.objects(features), self.background(features)


@dataclass(frozen=True)
class ClassifierOptions:
    """What `stride train scene-classifier` does."""

    out: Path
    steps: int = 1500
    batch_size: int = 128
    rate: float = 4e-3
    seed: int = 1
    threads: int = 1


def scene_labels(scenes: tuple[Scene, ...]) -> tuple[Tensor, Tensor]:
    """Presence of every kind of object [N, colours * shapes * sizes] in {0, 1}, and index of the background [N]."""
    present = np.zeros((len(scenes), len(COLOURS), len(SHAPES), len(SIZES)), dtype=np.float32)
    colours, sizes, backgrounds = list(COLOURS), list(SIZES), list(BACKGROUNDS)
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            present[row, colours.index(item.colour), SHAPES.index(item.shape), sizes.index(str(item.size))] = 1
    targets = torch.tensor([backgrounds.index(str(scene.background)) for scene in scenes])
    return torch.from_numpy(present).flatten(1), targets


def train_scene_classifier(options: ClassifierOptions) -> None:
    """Train and leave `scene_classifier.safetensors` in `options.out`; a signal stops and keeps what there is."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    network = SceneClassifier()
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, options.steps, pct_start=0.1)
    metrics = options.out / "training" / "metrics.jsonl"
    with StopSignal() as stop, TrainingProgress("scene classifier", options.steps, 0, metrics) as progress:
        for step in range(options.steps):
            batch = draw_scenes((options.seed, step), options.batch_size)
            objects, background = scene_labels(batch.scenes)
            object_logits, background_logits = network(batch.images)
            loss = F.binary_cross_entropy_with_logits(object_logits, objects)
            loss = loss + 0.2 * F.cross_entropy(background_logits, background)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance(loss=loss.item())
            if stop.requested:
                break
        progress.record(step + 1, object_accuracy=_object_accuracy(network))
    weights = {name: value.half() for name, value in network.state_dict().items()}
    replace_file(options.out / "scene_classifier.safetensors", save(weights))


def load_scene_classifier(path: Path) -> SceneClassifier:
    """The network of a file that `train_scene_classifier` wrote."""
    network = SceneClassifier()
    network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return network.eval()


@torch.no_grad()
def _object_accuracy(network: SceneClassifier) -> float:
    """Share of 512 held-out scenes whose objects are all named and no others."""
    batch = draw_scenes((2, 2), 512, held_out=True)
    objects, _ = scene_labels(batch.scenes)
    return ((network(batch.images)[0] > 0) == (objects > 0.5)).all(1).float().mean().item()


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Fréchet distance of Gaussians fitted to features [N, D] and [M, D] (arXiv 1706.08500, eq. 6).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the last trace from the eigenvalues of C1 C2.
    """
    first, second = first.double(), second.double()
    mean = (first.mean(0) - second.mean(0)).square().sum()
    covariances = torch.cov(first.T), torch.cov(second.T)
    root = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp_min(0).sqrt().sum()
    return float(mean + covariances[0].trace() + covariances[1].trace() - 2 * root)


@torch.no_grad()
def picture_features(classifier: SceneClassifier, images: Tensor) -> Tensor:
    """Features [N, FEATURES] of pictures as a client gets them: clamped and rounded to 8 bits."""
    rounded = ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    return torch.cat([classifier.features(part) for part in rounded.split(256)])
