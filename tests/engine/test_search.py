"""Several latents of one request: they share forwards with everybody, the best are the answer, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.engine.loop import Engine
from service.engine.messages import Done, Finish, Found, Submit
from service.models.scorers import SCORERS, Scorer
from service.procedures.search import BestOf, Particles
from tests.engine.driving import Outputs, finish_all
from tests.engine.test_pictures import engine_of, request
from tests.latent_networks import ToyNetwork

SPREAD = 0.4
GIVEN = 1.0
"""In a latent, of white."""


class SpreadNetwork(ToyNetwork):
    """Data are N(m, SPREAD²) in every number, with m the toy's mean of the text: the exact velocity of that."""

    scorers = ("brightness", "scene")
    decodes = True

    def evaluate(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, conditions: Any, adapters: Any) -> Tensor:
        self.evaluated.append(len(x))
        mean = torch.stack([0.3 * torch.tanh(condition.tensors["mean"]) for condition in conditions]).view(-1, 1, 1, 1)
        t = t.view(-1, 1, 1, 1)
        spread = (1 - t) ** 2 * SPREAD**2 + t**2
        data = mean + (1 - t) * SPREAD**2 / spread * (x - (1 - t) * mean)
        return (x - data) / t.clamp_min(1e-4)


class PixelNetwork(SpreadNetwork):
    """The same where the latent is the picture."""

    decodes = False


@pytest.fixture(autouse=True)
def brightness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(SCORERS, "brightness", Scorer(lambda prompt, picture: float(picture.mean()) / 255))
    yield


def search(name: str, method: BestOf | Particles, **options: Any) -> Submit:
    noisy = {"procedure": "ddim", "parameters": {"steps": 5, "eta": 1.0}} if isinstance(method, Particles) else {}
    options = {"size": (16, 16), **noisy, **options}
    procedure = options.pop("procedure", "euler")
    submit = request(name, options.pop("prompt", "a red fox"), search=method, **options)
    return Submit(name, "toy", procedure, submit.parameters, submit.seed, submit.work, 0.0)


def best(outputs: Outputs, name: str) -> list[Found]:
    return outputs.done[name].found


@pytest.mark.parametrize("network", [SpreadNetwork, PixelNetwork])
def test_the_best_of_several_are_the_best_pictures_of_their_seeds(network: type[SpreadNetwork]) -> None:
    outputs = finish_all(engine_of(network()), [search("s", BestOf(scorer="brightness", candidates=6), seed=40, outputs=2)])
    each = finish_all(engine_of(network()), [request(f"r{seed}", size=(16, 16), seed=seed) for seed in range(40, 46)])
    ranked = sorted(range(40, 46), key=lambda seed: -np.frombuffer(each.done[f"r{seed}"].rgb, np.uint8).mean())
    assert [found.seed for found in best(outputs, "s")] == ranked[:2]
    assert [found.rgb for found in best(outputs, "s")] == [each.done[f"r{seed}"].rgb for seed in ranked[:2]]
    assert best(outputs, "s")[0].score > best(outputs, "s")[1].score
    usage = outputs.done["s"].usage
    assert usage.nfe == sum(done.usage.nfe or 0 for done in each.done.values()) == 48 and usage.scored == 6
    assert usage.forwards is not None and usage.forwards <= 4 + 3


@pytest.mark.parametrize("method", [BestOf(scorer="brightness", candidates=5), Particles(scorer="brightness", particles=5)])
def test_a_search_shares_forwards_and_finds_the_same_alone(method: BestOf | Particles) -> None:
    network = SpreadNetwork()
    wanted = search("s", method, seed=3)
    crowd = [request(f"r{i}", size=(16, 16), seed=i, parameters={"steps": 3 + i}) for i in range(4)]
    together = finish_all(engine_of(network), [wanted, *crowd, search("other", method, seed=9)])
    assert max(network.evaluated) >= 2 * (5 + 4 + 5)
    alone = finish_all(engine_of(SpreadNetwork()), [wanted])
    assert [(f.seed, f.rgb) for f in best(alone, "s")] == [(f.seed, f.rgb) for f in best(together, "s")]
    for submit in crowd:
        assert finish_all(engine_of(SpreadNetwork()), [submit]).done[submit.id].rgb == together.done[submit.id].rgb


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize("network", [SpreadNetwork, PixelNetwork])
def test_a_search_in_parts_finds_what_it_finds_at_once(network: type[SpreadNetwork], rows: int) -> None:
    """A copy is read before what it is copied from moves on, however few rows fit into a forward."""
    method = Particles(scorer="brightness", particles=8, temperature=0.02)
    network_in_parts = network()
    in_parts = finish_all(engine_of(network_in_parts, rows=rows), [search("s", method, outputs=8)])
    at_once = finish_all(engine_of(network()), [search("s", method, outputs=8)])
    assert max(network_in_parts.evaluated) <= 2 * rows
    assert [f.rgb for f in best(in_parts, "s")] == [f.rgb for f in best(at_once, "s")]
    assert len({f.rgb for f in best(at_once, "s")}) == 8, "copies went on alike"


def test_copies_are_what_their_ancestor_would_have_become_with_other_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """One latent is everybody's ancestor behind the first row: the others go on as it does, but for their own noise."""
    first = search("s", BestOf(scorer="brightness", candidates=2), procedure="ddim", parameters={"steps": 2, "eta": 1.0}, seed=5)
    method = Particles(scorer="brightness", particles=2, temperature=1e-3)
    network = SpreadNetwork()
    engine = engine_of(network)
    steered = finish_all(engine, [search("s", method, parameters={"steps": 2, "eta": 1.0}, seed=5, outputs=2)])
    apart = finish_all(engine_of(SpreadNetwork()), [first])
    assert len({found.rgb for found in best(steered, "s")}) == 2
    assert best(apart, "s")[0].rgb in {found.rgb for found in best(steered, "s")}
    assert network.evaluated[-1] == 4, "both latents are evaluated, each with and without the text"


def test_others_run_while_a_large_search_does() -> None:
    engine = engine_of(SpreadNetwork(), rows=8)
    outputs = Outputs()
    outputs.take(engine.take(search("s", BestOf(scorer="brightness", candidates=32))))
    outputs.take(engine.tick())
    outputs.take(engine.take(request("r", size=(16, 16))))
    while "r" not in outputs.done:
        assert engine.has_work
        outputs.take(engine.tick())
    assert "s" not in outputs.done


def test_steering_finds_brighter_pictures_than_the_best_of_as_many() -> None:
    """Both spend the same evaluations; what is steered looks at its pictures on the way."""
    sampler = {"procedure": "ddim", "parameters": {"steps": 12, "eta": 1.0, "guidance": 1.0}}
    means = {}
    for name, method in {
        "best_of": BestOf(scorer="brightness", candidates=4),
        "particles": Particles(scorer="brightness", particles=4, temperature=0.01),
    }.items():
        submits = [search(f"s{seed}", method, seed=seed * 100, **sampler) for seed in range(40)]
        outputs = finish_all(engine_of(SpreadNetwork(), slots=512, rows=256), submits)
        assert {done.usage.nfe for done in outputs.done.values()} == {4 * 12}
        means[name] = np.mean([done.found[0].score for done in outputs.done.values()])
    assert means["particles"] > means["best_of"] + 0.02, means


@pytest.mark.parametrize("method", [BestOf(scorer="brightness", candidates=4), Particles(scorer="brightness", particles=4)])
@pytest.mark.parametrize("ticks", [0, 1, 3, 6, 9])
def test_a_cancelled_search_leaves_nothing(method: BestOf | Particles, ticks: int) -> None:
    engine, outputs = engine_of(SpreadNetwork(), rows=3), Outputs()
    outputs.take(engine.take(search("s", method)))
    outputs.take(engine.take(request("r")))
    for _ in range(ticks):
        outputs.take(engine.tick())
        engine.scheduler.check_books()
    outputs.take(engine.take(Finish("s")))
    assert outputs.done["s"].finish_reason == "cancelled" and not outputs.done["s"].found
    engine.scheduler.check_books()
    finish_all(engine, [], outputs)
    assert outputs.done["r"].rgb and used(engine) == 0


def used(engine: Engine) -> int:
    return engine.scheduler.lanes["toy"].pool.used


def test_a_scorer_that_fails_fails_its_own_search_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(prompt: str, picture: np.ndarray) -> float:
        return float("nan") if "odd" in prompt else 1.0

    monkeypatch.setitem(SCORERS, "brightness", Scorer(broken))
    method = BestOf(scorer="brightness", candidates=3)
    engine = engine_of(SpreadNetwork())
    outputs = finish_all(engine, [search("odd", method, prompt="an odd fox"), search("fine", method)])
    assert outputs.failed["odd"].status == 500 and "nan" in outputs.failed["odd"].message
    assert outputs.done["fine"].found and used(engine) == 0


def test_a_prompt_that_the_scorer_cannot_read_is_refused_before_anything_is_evaluated() -> None:
    network = SpreadNetwork()
    engine = engine_of(network)
    outputs = finish_all(engine, [search("s", BestOf(scorer="scene"))])
    assert (outputs.failed["s"].status, outputs.failed["s"].param) == (400, "prompt")
    assert "a shape" in outputs.failed["s"].message and not network.evaluated and used(engine) == 0


def test_a_search_for_more_latents_than_there_are_slots_is_refused() -> None:
    outputs = finish_all(engine_of(SpreadNetwork(), slots=4), [search("s", BestOf(scorer="brightness", candidates=5))])
    assert (outputs.failed["s"].status, outputs.failed["s"].param) == (400, "search")


def test_searches_wait_for_slots_and_all_end() -> None:
    engine = engine_of(SpreadNetwork(), slots=7)
    outputs = finish_all(engine, [search(f"s{i}", BestOf(scorer="brightness", candidates=4), seed=i) for i in range(5)])
    assert len(outputs.done) == 5 and used(engine) == 0
    assert sum(tick.score_moves for tick in outputs.ticks) == 20


def test_a_cancelled_search_ends_every_output() -> None:
    engine = engine_of(SpreadNetwork())
    (done,) = engine.take(search("s", BestOf(scorer="brightness"), outputs=3)) + engine.take(Finish("s"))
    assert isinstance(done, Done) and [one.rgb for one in done.each(3)] == [b""] * 3


def test_copies_keep_what_a_mask_keeps_at_its_own_level_of_noise() -> None:
    """What the network sees where nothing changes is alpha x0 + sigma eps of one noise, in copies as in all others."""
    seen: list[Tensor] = []

    class Watched(SpreadNetwork):
        def evaluate(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, conditions: Any, adapters: Any) -> Tensor:
            level = t.view(-1, 1, 1, 1)
            seen.extend(((x - (1 - level) * GIVEN) / level)[:, :, :, 1:])
            return super().evaluate(x, t, s, guidance, conditions, adapters)

    mask = np.zeros((16, 16), np.uint8)
    mask[:, :8] = 255
    picture = np.full((16, 16, 3), 255, np.uint8)
    method = Particles(scorer="brightness", particles=4, temperature=1e-3)
    options: dict[str, Any] = {"image": picture.tobytes(), "mask": mask.tobytes(), "seed": 5}
    outputs = finish_all(engine_of(Watched()), [search("s", method, **options)])
    assert outputs.done["s"].usage.nfe == 40
    noises = torch.stack(seen)
    own = noises[:4]
    distance = (noises[:, None] - own[None]).abs().flatten(2).amax(dim=2).amin(dim=1)
    assert distance.max() < 1e-3
