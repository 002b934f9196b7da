"""Requests for pictures of all kinds that come at random times share forwards, and each gets what it gets alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
from safetensors.torch import save_file

from service.engine.assembly import build_engine
from service.engine.loop import Engine
from service.engine.messages import ImageWork, Submit
from service.settings import Settings
from tests.adapters import random_adapter
from tests.engine.driving import Outputs, finish_all, unhurried
from tests.few import few
from tests.pipeline_checkpoints.stable_diffusion import write_stable_diffusion_xl
from tests.pipelines import load

LAYERS = (
    "conv_in",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.0.resnets.1.conv1",
)
WORDS = "encoder.layers.0.mlp.fc1"
SAMPLERS = ("euler", "ddim", "dpmpp_2m", "unipc", "heun", "euler_ancestral", "ddpm")
TEXTS = ("a red fox", "two blue cats, sleeping", "", "a very long text about nothing but dots and more dots")
ADAPTERS: tuple[list[tuple[str, float]], ...] = ([], [("ink", 1.0)], [], [("oil", 0.6), ("ink", -0.4)], [("words", 1.0)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What --model says: a small Stable Diffusion XL with adapters, one of which is for texts alone."""
    folder = write_stable_diffusion_xl(tmp_path_factory.mktemp("xl") / "model")
    parts = load(folder).components.parts
    files = {
        "ink": random_adapter(parts["unet"], LAYERS, seed=0).tensors("unet.", "diffusers", alphas=False),
        "oil": random_adapter(parts["unet"], LAYERS, seed=1).tensors("lora_unet_", "kohya", alphas=True),
        "words": random_adapter(parts["text_encoder"], [WORDS]).tensors("text_encoder.", "peft", alphas=False),
    }
    text = f"xl={folder},dtype=float32"
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
        text += f",lora={name}:{folder / name}.safetensors"
    return text


def engine_with(model: str) -> Engine:
    return build_engine(Settings(models=[model], threads=1, kv_memory=1 << 20))


def request(number: int, rng: random.Random) -> Submit:
    sampler = SAMPLERS[number % len(SAMPLERS)]
    parameters = {"steps": rng.randint(2, 5), "guidance": rng.choice((1.0, 2.5, 6.0))}
    size = rng.choice(((32, 32), (32, 32), (48, 32)))
    work = ImageWork(rng.choice(TEXTS), *size, negative=rng.choice(("", "grey dots")), adapters=ADAPTERS[number % len(ADAPTERS)])
    return Submit(f"r{number}", "xl", sampler, parameters, number, work, 0.0)


def pixels(outputs: Outputs, name: str) -> np.ndarray:
    done = outputs.done[name]
    return np.frombuffer(done.rgb, np.uint8).reshape(done.height, done.width, 3).astype(int)


@pytest.mark.parametrize("count", few([12, 21], 12))
def test_requests_that_come_at_random_share_forwards_and_get_what_each_gets_alone(model: str, count: int) -> None:
    rng = random.Random(5)
    submits = [request(number, rng) for number in range(count)]
    engine, outputs, waiting = unhurried(engine_with(model)), Outputs(), list(submits)
    while waiting or engine.has_work:
        while waiting and (rng.random() < 0.4 or not engine.has_work):
            outputs.take(engine.take(waiting.pop(0)))
        outputs.take(engine.tick())
    assert not outputs.failed
    forwards = [tick.refine_moves for tick in outputs.ticks if tick.refine_moves]
    assert sum(forwards) > 2 * len(forwards), "rows a forward"
    pictures = [pixels(outputs, submit.id) for submit in submits]
    by_itself = engine_with(model)
    for submit, picture in zip(submits, pictures, strict=True):
        alone = pixels(finish_all(by_itself, [submit]), submit.id)
        assert np.abs(alone - picture).max() <= 1, submit
    spread = [np.abs(a - b).mean() for a in pictures for b in pictures if a is not b and a.shape == b.shape]
    assert min(spread) > 1, "each is a picture of its own"


@pytest.mark.parametrize("adapter", ["ink", "words"])
def test_an_adapter_changes_the_picture_of_those_who_ask_for_it(model: str, adapter: str) -> None:
    """Of the denoiser, and of the text encoder alone: what a text became is not handed to those who ask without."""
    engine = engine_with(model)

    def picture(name: str, adapters: list[tuple[str, float]]) -> np.ndarray:
        work = ImageWork("a red fox", 32, 32, adapters=adapters)
        return pixels(finish_all(engine, [Submit(name, "xl", "euler", {"steps": 2}, 1, work, 0.0)]), name)

    plain, adapted = picture("plain", []), picture("adapted", [(adapter, 1.0)])
    assert np.abs(plain - adapted).mean() > 0.5
    assert np.array_equal(plain, picture("again", []))
