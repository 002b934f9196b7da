"""Tokens of a picture made set by set: the joint distribution, and what rows of other requests have to do with it: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.engine.assembly import picture_model
from service.engine.lane import Limits
from service.engine.loop import Engine
from service.engine.messages import Finish, ImageWork, Preview, Submit
from service.models.masked_autoregressive import PatchwiseNetwork
from service.workers.block_pool import BlockPool
from service.workers.hosting import ImageHost
from service.workers.latent_worker import LatentWorker
from service.workers.threads import Threads
from tests.engine.driving import Outputs, finish_all
from tests.token_networks import RANGE, GaussianField, random_patchwise


def engine_of(network: PatchwiseNetwork, rows: int = 256, slots: int = 256, invariant: bool = False) -> Engine:
    pool = BlockPool(slots)
    worker = LatentWorker(network, pool, torch.device("cpu"), Threads.of(1), invariant)
    worker.store.fill_(float("nan"))  # what was there before must not matter
    return Engine([picture_model(ImageHost("toy", Path("toy"), 100, network, pool, worker), Limits(rows, 512, slots))])


def request(name: str, seed: int, size: int = 8, prompt: str = "a text", **options: Any) -> Submit:
    parameters = {"iterations": 4, "steps": 3, "guidance": 1.0, **options.pop("parameters", {})}
    work = ImageWork(prompt, size, size, **options)
    return Submit(name, "toy", "masked_autoregressive", parameters, seed, work, 0.0)


def pixels(outputs: Outputs, name: str) -> np.ndarray:
    done = outputs.done[name]
    return np.frombuffer(done.rgb, np.uint8).reshape(done.height, done.width, 3)


def samples(count: int, **parameters: Any) -> np.ndarray:
    """Values [count, 4] of so many pictures of the field."""
    chain = {"steps": 6, "sampler": "dpmpp_2m", **parameters}
    submits = [request(f"r{seed}", seed, size=2, parameters=chain) for seed in range(count)]
    outputs = finish_all(engine_of(GaussianField()), submits)
    return np.stack([(pixels(outputs, s.id)[..., 0].ravel() / 127.5 - 1.0) * RANGE for s in submits])


def test_a_token_at_a_time_gives_the_joint_distribution() -> None:
    values = samples(400, iterations=4)
    assert np.abs(values.mean(axis=0) - 0.5).max() < 0.2
    assert np.abs(np.cov(values.T) - GaussianField.covariance.numpy()).max() < 0.25


def test_all_tokens_at_once_give_marginals_and_no_joint() -> None:
    values = samples(300, iterations=1)
    assert np.abs(np.cov(values.T) - np.eye(4)).max() < 0.3


def test_requests_share_forwards_and_each_is_as_alone() -> None:
    kinds = [
        {"iterations": 1}, {"iterations": 5, "steps": 4}, {"iterations": 16, "sampler": "heun"}, {"guidance": 2.0},
        {"sampler": "ddim", "order": "raster"}, {"sampler": "euler_ancestral", "steps": 5, "guidance": 3.0, "iterations": 3},
    ]  # fmt: skip
    submits = [
        request(f"r{i}", i, prompt=f"text {i}" * (1 + i), negative="not this" if "guidance" in kind else "", parameters=kind)
        for i, kind in enumerate(kinds * 2)
    ]
    network = PatchwiseNetwork(random_patchwise())
    crowd = finish_all(engine_of(network), submits)
    ticks = [tick for tick in crowd.ticks if tick.refine_moves or tick.expand_moves]
    assert max(tick.rows for tick in ticks) >= 8
    assert any(tick.expand_moves > 1 for tick in ticks) and all(not (tick.expand_moves and tick.refine_moves) for tick in ticks)
    for submit in submits:
        alone = finish_all(engine_of(PatchwiseNetwork(random_patchwise())), [submit])
        apart = np.abs(pixels(alone, submit.id).astype(int) - pixels(crowd, submit.id))
        assert apart.max() <= 1, submit.parameters
        assert alone.done[submit.id].usage.nfe == crowd.done[submit.id].usage.nfe
    assert len({crowd.done[submit.id].rgb for submit in submits}) == len(submits)


def test_batch_invariant_rows_are_the_same_bit_for_bit() -> None:
    submits = [request(f"r{i}", i, parameters={"iterations": 2 + i}) for i in range(4)]
    crowd = finish_all(engine_of(PatchwiseNetwork(random_patchwise()), invariant=True), submits)
    for submit in submits:
        alone = finish_all(engine_of(PatchwiseNetwork(random_patchwise()), invariant=True), [submit])
        assert alone.done[submit.id].rgb == crowd.done[submit.id].rgb


def test_usage_counts_both_axes() -> None:
    kinds: dict[str, dict[str, Any]] = {"plain": {}, "guided": {"guidance": 2.0}, "heun": {"sampler": "heun"}}
    submits = [request(name, 1, parameters=kind) for name, kind in kinds.items()]
    outputs = finish_all(engine_of(PatchwiseNetwork(random_patchwise())), submits)
    assert outputs.done["plain"].usage.nfe == 4 * (1 + 3)
    assert outputs.done["guided"].usage.nfe == 2 * 4 * (1 + 3)
    assert outputs.done["heun"].usage.nfe == 4 * (1 + 5)
    assert sum(tick.expand_moves for tick in outputs.ticks) == 12


def test_previews_show_what_is_known_and_grey_elsewhere() -> None:
    engine, previews, outputs = engine_of(PatchwiseNetwork(random_patchwise())), list[Preview](), Outputs()
    engine.take(request("r", 3, preview_every=3))
    while engine.has_work:
        events = engine.tick()
        previews += [event for event in events if isinstance(event, Preview)]
        outputs.take(events)
    assert [(preview.step, preview.steps) for preview in previews] == [(3, 12), (6, 12), (9, 12)]
    assert [preview.t for preview in previews] == [0.75, 0.5, 0.25]
    final = pixels(outputs, "r").reshape(4, 2, 4, 2, 3).swapaxes(1, 2).reshape(16, -1).astype(int)
    shown = [0]
    for preview in previews:
        tokens = np.frombuffer(preview.rgb, np.uint8).reshape(4, 2, 4, 2, 3).swapaxes(1, 2).reshape(16, -1)
        grey, same = (tokens == 128).all(axis=1), (np.abs(tokens - final) <= 1).all(axis=1)
        assert (grey | same).all()
        shown.append(16 - int(grey.sum()))
    assert shown == sorted(shown) and shown[1] >= 1 and shown[-1] < 16


@pytest.mark.parametrize("ticks", [1, 2, 4, 9])
def test_a_cancelled_picture_leaves_nothing(ticks: int) -> None:
    engine, outputs = engine_of(PatchwiseNetwork(random_patchwise())), Outputs()
    for message in (request("r", 0), request("other", 1)):
        outputs.take(engine.take(message))
    for _ in range(ticks):
        outputs.take(engine.tick())
        engine.scheduler.check_books()
    outputs.take(engine.take(Finish("r")))
    finish_all(engine, [], outputs)
    assert outputs.done["r"].finish_reason == "cancelled" and outputs.done["other"].rgb
    assert engine.scheduler.lanes["toy"].pool.used == 0
