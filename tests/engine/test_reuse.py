"""Reuse between steps through the engine: what a request remembers is its own, whoever shares its forwards."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from service.engine.assembly import picture_model
from service.engine.lane import Limits
from service.engine.loop import Engine
from service.engine.messages import ImageWork, Submit
from service.engine.validation import InvalidField, procedure_parameters
from service.models.class_conditional import FLOWS, ClassConditional
from service.models.picture_codec import PixelCodec
from service.procedures.search import BestOf
from service.workers import latent_worker
from service.workers.block_pool import BlockPool
from service.workers.hosting import ImageHost
from service.workers.latent_worker import LatentWorker
from service.workers.threads import Threads
from tests.dit_checkpoints import small_dit
from tests.engine.driving import Outputs, finish_all
from tests.latent_networks import ToyNetwork


def engine_of(network: Any, batch_invariant: bool = False) -> Engine:
    pool = BlockPool(64)
    worker = LatentWorker(network, pool, torch.device("cpu"), Threads.of(1), batch_invariant)
    return Engine([picture_model(ImageHost("toy", Path("toy"), 100, network, pool, worker), Limits(32, 512, 64))])


@pytest.fixture(scope="module")
def network() -> ClassConditional:
    return ClassConditional(small_dit("sit", channels=3), PixelCodec(), *FLOWS["sit"])


def request(name: str, threshold: float, seed: int = 0, steps: int = 8, guidance: float = 2.0) -> Submit:
    parameters = {"steps": steps, "guidance": guidance, "reuse_threshold": threshold}
    return Submit(name, "toy", "euler", parameters, seed, ImageWork(str(seed % 10), 8, 8), 0.0)


def pixels(outputs: Outputs, name: str) -> np.ndarray:
    return np.frombuffer(outputs.done[name].rgb, np.uint8).astype(int)


CROWD = [
    request(f"r{i}", threshold, seed=i, steps=steps, guidance=guidance)
    for i, (threshold, steps, guidance) in enumerate(
        [(0.0, 8, 2.0), (0.1, 8, 2.0), (0.25, 12, 1.0), (10.0, 5, 3.0), (0.1, 20, 4.0), (0.0, 6, 1.0), (0.25, 16, 2.0)]
    )
]


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_requests_that_reuse_in_a_crowd_are_what_they_are_alone(network: ClassConditional, batch_invariant: bool) -> None:
    crowd = finish_all(engine_of(network, batch_invariant), CROWD)
    for submit in CROWD:
        alone = finish_all(engine_of(network, batch_invariant), [submit])
        assert alone.done[submit.id].usage.reused == crowd.done[submit.id].usage.reused
        assert np.abs(pixels(alone, submit.id) - pixels(crowd, submit.id)).max() <= (0 if batch_invariant else 1)


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_row_that_fails_changes_nothing_that_others_remember(
    network: ClassConditional, batch_invariant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, broken = network.evaluate, network.encode(["9"])[0]

    def failing(*arguments: Any) -> torch.Tensor:
        if any(torch.equal(condition.tensors["label"], broken.tensors["label"]) for condition in arguments[4]):
            raise RuntimeError("this class cannot be evaluated")
        return evaluate(*arguments)

    monkeypatch.setattr(network, "evaluate", failing)
    sound = CROWD[1:4]
    outputs = finish_all(engine_of(network, batch_invariant), [*sound, request("broken", 0.1, seed=9)])
    assert list(outputs.failed) == ["broken"]
    for submit in sound:
        alone = finish_all(engine_of(network, batch_invariant), [submit])
        assert alone.done[submit.id].usage.reused == outputs.done[submit.id].usage.reused
        assert np.abs(pixels(alone, submit.id) - pixels(outputs, submit.id)).max() <= (0 if batch_invariant else 1)


def test_a_forward_that_fails_behind_its_evaluations_changes_nothing_either(
    network: ClassConditional, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third forward of several rows fails when the network is done; its rows are then run one by one."""
    sampler_step, calls = latent_worker.sampler_step, count()

    def failing(x: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if len(x) > 1 and next(calls) % 3 == 2:
            raise RuntimeError("no step for these")
        return sampler_step(x, *arguments, **named)

    monkeypatch.setattr(latent_worker, "sampler_step", failing)
    outputs = finish_all(engine_of(network), CROWD)
    assert next(calls) > 6
    for submit in CROWD:
        alone = finish_all(engine_of(network), [submit])
        assert alone.done[submit.id].usage.reused == outputs.done[submit.id].usage.reused
        assert np.abs(pixels(alone, submit.id) - pixels(outputs, submit.id)).max() <= 1


def test_usage_says_how_many_evaluations_were_reused(network: ClassConditional) -> None:
    outputs = finish_all(engine_of(network), [request("none", 0.0), request("some", 0.25), request("all", 10.0)])
    none, some, every = (outputs.done[name].usage for name in ("none", "some", "all"))
    assert none.reused is None and none.nfe == some.nfe == every.nfe == 16
    assert some.reused is not None and 0 < some.reused < 14
    assert every.reused == 14, "all but the first with the class and the first without"


def test_a_small_threshold_changes_little_and_a_large_one_more(network: ClassConditional) -> None:
    outputs = finish_all(engine_of(network), [request(f"{threshold}", threshold, steps=20) for threshold in (0.0, 0.1, 10.0)])
    exact, near, far = (pixels(outputs, name) for name in ("0.0", "0.1", "10.0"))
    assert 0 < np.abs(near - exact).mean() < np.abs(far - exact).mean() / 2


def test_candidates_of_a_search_each_remember_their_own(network: ClassConditional) -> None:
    """The best of four with a threshold is the one that its seed gives alone, with as many evaluations reused."""
    searched = request("searched", 0.25, seed=5)
    work = msgspec.structs.replace(searched.work, search=BestOf(candidates=4, scorer="sharpness"))
    outputs = finish_all(engine_of(network), [msgspec.structs.replace(searched, work=work)])
    found = outputs.done["searched"].found[0]
    alone = [finish_all(engine_of(network), [msgspec.structs.replace(searched, seed=5 + i)]).done["searched"] for i in range(4)]
    assert outputs.done["searched"].usage.reused == sum(done.usage.reused or 0 for done in alone)
    own = np.frombuffer(alone[found.seed - 5].rgb, np.uint8).astype(int)
    assert np.abs(own - np.frombuffer(found.rgb, np.uint8).astype(int)).max() <= 1


def test_a_model_that_cannot_reuse_refuses_by_name() -> None:
    card = engine_of(ToyNetwork()).models["toy"].card
    assert not card.reuses
    with pytest.raises(InvalidField, match="toy has no blocks") as refused:
        procedure_parameters(card, {"name": "euler", "reuse_threshold": 0.1})
    assert refused.value.param == "procedure.reuse_threshold"
    procedure_parameters(card, {"name": "euler", "reuse_threshold": 0.0})
