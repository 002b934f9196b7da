"""Pipelines in the engine: encoding, evaluations and decoding are moves, and pictures are what a plain loop makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kernels.philox import normal
from service.engine.assembly import build_engine
from service.engine.messages import ImageWork, Submit
from service.settings import Settings
from service.workers.purposes import INITIAL_NOISE
from tests.engine.driving import finish_all
from tests.pipelines import FAMILIES, load, refine, table_for


@dataclass(frozen=True)
class Asked:
    prompt: str
    negative: str = ""
    size: tuple[int, int] = (32, 32)
    procedure: str = "euler"
    steps: int = 3
    guidance: float = 3.0


ASKED = [
    Asked("a red circle"),
    Asked("two small blue squares beside a very large green one", "blurred", steps=4, guidance=5.0),
    Asked("a red circle", procedure="dpmpp_2m", steps=5, guidance=1.0),
    Asked("a dog", size=(48, 32), procedure="heun", steps=2),
    Asked("", "grey", size=(48, 32), steps=3),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return lambda name: FAMILIES[name].write(tmp_path_factory.mktemp(name) / "model")


@pytest.mark.parametrize("name", ["stable_diffusion_3", "flux_dev", "qwen_image", "z_image"])
def test_requests_of_every_kind_share_forwards_and_give_what_each_gives_alone(name: str, folders: Callable[[str], Path]) -> None:
    folder = folders(name)
    network = load(folder)
    asked = [one for one in ASKED if network.guidance_input == "no" or not one.negative]
    engine = build_engine(Settings(models=[f"m={folder},dtype=float32"], threads=1, kv_memory=1 << 20))
    submits = [
        Submit(f"r{i}", "m", one.procedure, {"steps": one.steps, "guidance": one.guidance}, 100 + i, work(one), 0.0)
        for i, one in enumerate(asked)
    ]
    outputs = finish_all(engine, submits)
    assert not outputs.failed
    refining = [tick for tick in outputs.ticks if tick.refine_moves]
    assert sum(tick.refine_moves for tick in refining) == sum(len(table_for(network, **parameters(one))) for one in asked)
    assert max(tick.refine_moves for tick in refining) > 1
    assert sum(tick.encode_moves for tick in outputs.ticks) == sum(tick.decode_moves for tick in outputs.ticks) == len(asked)
    for i, one in enumerate(asked):
        done = outputs.done[f"r{i}"]
        seen = np.frombuffer(done.rgb, np.uint8).reshape(one.size[1], one.size[0], 3).astype(int)
        expected = alone(network, one, 100 + i)
        assert np.abs(seen - expected).max() <= 1
        assert expected.std() > 5


def work(one: Asked) -> ImageWork:
    return ImageWork(one.prompt, *one.size, negative=one.negative)


def parameters(one: Asked) -> dict[str, Any]:
    return {"name": one.procedure, "steps": one.steps, "guidance": one.guidance, "size": one.size}


def alone(network: Any, one: Asked, seed: int) -> np.ndarray:
    """The picture by a plain loop, int [H, W, 3]."""
    shape = network.latent_shape(*one.size)
    noise = normal(torch.tensor([seed]), torch.tensor([0]), INITIAL_NOISE, math.prod(shape)).view(1, *shape)
    states = refine(network, table_for(network, **parameters(one)), noise, [one.prompt], [one.negative], one.guidance)
    with torch.inference_mode():
        return network.decode(states[-1])[0].numpy().astype(int)
