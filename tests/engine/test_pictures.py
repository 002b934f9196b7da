"""Pictures through the engine: texts, latents of several sizes and decoding as moves that the scheduler places."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.engine.assembly import picture_model
from service.engine.lane import Limits
from service.engine.loop import Engine
from service.engine.messages import ImageWork, Preview, Submit
from service.procedures.noise import NoiseProcess, TrainingTimes
from service.procedures.parameters import EulerParameters
from service.workers.block_pool import BlockPool
from service.workers.hosting import ImageHost
from service.workers.latent_worker import LatentWorker
from service.workers.threads import Threads
from tests.engine.driving import Outputs, finish_all
from tests.latent_networks import ToyNetwork
from tests.procedures.test_table_invariants import LATENT


def engine_of(network: ToyNetwork, rows: int = 32, slots: int = 64) -> Engine:
    pool = BlockPool(slots)
    worker = LatentWorker(network, pool, torch.device("cpu"), Threads.of(1))
    host = ImageHost("toy", Path("toy"), 100, network, pool, worker)
    return Engine([picture_model(host, Limits(rows, 512, slots))])


def request(name: str, prompt: str = "a red fox", size: tuple[int, int] = (64, 64), **options: Any) -> Submit:
    seed = options.pop("seed", 0)
    parameters = {"steps": 4, "guidance": 2.0, **options.pop("parameters", {})}
    work = ImageWork(prompt, *size, **options)
    return Submit(name, "toy", options.get("procedure", "euler"), parameters, seed, work, 0.0)


def pixels(outputs: Outputs, name: str) -> np.ndarray:
    done = outputs.done[name]
    return np.frombuffer(done.rgb, np.uint8).reshape(done.height, done.width, 3)


def test_a_text_is_encoded_once_for_all_who_ask_with_it() -> None:
    network = ToyNetwork()
    engine = engine_of(network)
    finish_all(engine, [request(f"r{i}", "same" if i % 2 else f"own {i}", seed=i) for i in range(6)])
    assert network.encoded == [["own 0", "same", "own 2", "own 4"], [""]]
    finish_all(engine, [request("later", "same")])
    assert len(network.encoded) == 2


def test_sizes_share_a_forward_with_their_own_kind_and_each_is_as_alone() -> None:
    rng = random.Random(3)
    sizes = [(64, 64), (32, 64), (128, 64)]
    submits = [
        request(f"r{i}", f"text {i}", rng.choice(sizes), seed=i, parameters={"steps": rng.choice((2, 3, 5)), "guidance": g})
        for i, g in enumerate([1.0, 2.0, 4.0] * 5)
    ]
    network = ToyNetwork()
    crowd = finish_all(engine_of(network), submits)
    assert len(network.evaluated) < sum(s.parameters["steps"] for s in submits) / 2
    assert sum(network.evaluated) == sum(d.usage.nfe or 0 for d in crowd.done.values())
    for submit in submits:
        alone = finish_all(engine_of(ToyNetwork()), [submit])
        assert np.array_equal(pixels(alone, submit.id), pixels(crowd, submit.id))
        assert (crowd.done[submit.id].width, crowd.done[submit.id].height) == (submit.work.width, submit.work.height)


def test_pictures_that_end_together_are_decoded_together() -> None:
    network = ToyNetwork()
    finish_all(engine_of(network), [request(f"r{i}", seed=i) for i in range(5)])
    assert network.decoded == [5]


def test_previews_are_decoded_estimates_and_come_before_the_picture() -> None:
    network = ToyNetwork()
    engine, previews = engine_of(network), []
    engine.take(request("r", preview_every=1))
    while engine.has_work:
        previews += [event for event in engine.tick() if isinstance(event, Preview)]
    assert [(preview.step, preview.steps) for preview in previews] == [(1, 4), (2, 4), (3, 4)]
    assert [preview.t for preview in previews] == sorted((preview.t for preview in previews), reverse=True)
    assert (previews[0].width, previews[0].height) == (64, 64)


def test_a_text_that_the_model_cannot_take_fails_alone_and_names_its_field() -> None:
    outputs = finish_all(
        engine_of(ToyNetwork()), [request("good"), request("bad", "a # b"), request("worse", negative="#")]
    )  # fmt: skip
    assert set(outputs.done) == {"good"}
    assert (outputs.failed["bad"].status, outputs.failed["bad"].param) == (400, "prompt")
    assert (outputs.failed["worse"].status, outputs.failed["worse"].param) == (400, "negative_prompt")


def test_a_negative_prompt_takes_the_place_of_no_text() -> None:
    outputs = finish_all(engine_of(ToyNetwork()), [request("plain"), request("negative", negative="zzz")])
    assert not np.array_equal(pixels(outputs, "plain"), pixels(outputs, "negative"))
    # x' moves towards tanh(c) by w and away from tanh(u); at the end x0 = u + w (c - u).
    mean = {text: 0.3 * np.tanh(sum(map(ord, text)) / max(1, len(text)) / 64 - 1) for text in ("a red fox", "", "zzz")}
    for name, other in (("plain", ""), ("negative", "zzz")):
        x0 = mean[other] + 2.0 * (mean["a red fox"] - mean[other])
        assert abs(int(pixels(outputs, name)[0, 0, 0]) - round((min(max(x0, -1), 1) + 1) * 127.5)) <= 1


def test_guidance_stops_outside_its_interval() -> None:
    network = ToyNetwork()
    inside = {"steps": 8, "guidance": 3.0, "guidance_interval": (0.3, 0.8)}
    outputs = finish_all(engine_of(network), [request("r", parameters=inside)])
    levels = [1 - i / 8 for i in range(8)]
    assert outputs.done["r"].usage.nfe == 8 + sum(0.3 <= level <= 0.8 for level in levels)


def test_a_given_picture_is_kept_as_far_as_the_strength_says() -> None:
    picture = np.full((64, 64, 3), 200, np.uint8)
    picture[:, 32:] = 20
    network = ToyNetwork()
    outputs = finish_all(
        engine_of(network),
        [
            request("r", image=picture.tobytes(), parameters={"steps": 10, "strength": 0.1, "guidance": 1.0}),
            request("all", image=picture.tobytes(), parameters={"steps": 10, "strength": 1.0, "guidance": 1.0}),
        ],
    )
    assert outputs.done["r"].usage.nfe == 1
    assert outputs.done["all"].usage.nfe == 10


@pytest.mark.parametrize("steps", [1, 5])
def test_a_mask_keeps_what_is_outside_it(steps: int) -> None:
    picture = np.full((64, 64, 3), 200, np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    work = {"image": picture.tobytes(), "mask": mask.tobytes()}
    outputs = finish_all(engine_of(ToyNetwork()), [request("r", "!!!", parameters={"steps": steps}, **work)])
    seen = pixels(outputs, "r")
    assert np.abs(seen[:, 32:].astype(int) - 200).max() <= 1
    assert np.abs(seen[:, :32].astype(int) - 200).min() > 20


def test_a_mask_keeps_it_clean_where_a_sampler_ends_at_noise() -> None:
    class Lowest(ToyNetwork):
        noise = NoiseProcess(times=TrainingTimes(betas=LATENT, final="lowest"), prediction="noise")
        signature = ("noise(x,t)",)

    picture, mask = np.full((64, 64, 3), 200, np.uint8), np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    work = {"image": picture.tobytes(), "mask": mask.tobytes()}
    network = Lowest()
    assert EulerParameters(steps=5).table(network.noise).sigma[-1] > 0.02
    outputs = finish_all(engine_of(network), [request("r", parameters={"steps": 5}, **work)])
    assert np.abs(pixels(outputs, "r")[:, 32:].astype(int) - 200).max() <= 1


def test_adapters_reach_the_rows_that_asked_for_them() -> None:
    outputs = finish_all(
        engine_of(ToyNetwork()), [request("plain"), request("bright", adapters=[("brighter", 0.5)])]
    )  # fmt: skip
    assert pixels(outputs, "bright").mean() > pixels(outputs, "plain").mean()
    ticks = [tick for tick in outputs.ticks if tick.refine_moves]
    assert all(tick.refine_moves == 2 for tick in ticks)


def test_stages_are_counted_apart() -> None:
    outputs = finish_all(engine_of(ToyNetwork()), [request("r")])
    counted = [(tick.encode_moves, tick.refine_moves, tick.decode_moves) for tick in outputs.ticks]
    assert counted == [(1, 0, 0)] + [(0, 1, 0)] * 4 + [(0, 0, 1)]
