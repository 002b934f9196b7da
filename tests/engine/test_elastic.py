"""Pictures with a deadline through the engine: what runs is chosen at admission and shortened on the way."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from service.engine.assembly import picture_model
from service.engine.choosing import decide
from service.engine.cost import ForwardCost
from service.engine.image_request import ImageRequest
from service.engine.lane import Limits
from service.engine.loop import Engine
from service.engine.messages import Done, FromEngine, ImageWork, ModelCard, Preview, Submit
from service.engine.planning import HEADROOM
from service.engine.search_validation import checked_search
from service.engine.validation import InvalidField, check_negative, procedure_parameters
from service.models.latent_network import Adapters, Condition
from service.procedures.angle_times import AngleTimes
from service.procedures.noise import NoiseProcess, TrainingTimes
from service.procedures.quality import MeasuredQuality, QualityTable
from service.workers.block_pool import BlockPool
from service.workers.hosting import ImageHost
from service.workers.latent_worker import LatentWorker
from service.workers.threads import Threads
from tests.engine.driving import Outputs
from tests.latent_networks import ToyNetwork

BUCKET = ("refine", 64, 64)


class Clock:
    """Turned by every forward of the network, and by tests."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(ToyNetwork):
    """The same, turning a clock."""

    clock: Clock

    def evaluate(
        self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, conditions: Sequence[Condition], adapters: Sequence[Adapters]
    ) -> Tensor:
        self.clock.now += 0.01 + 0.001 * len(x)
        return super().evaluate(x, t, s, guidance, conditions, adapters)


class ToyMap(Timed):
    """One with a target time: from any time to any other the jump along its straight paths is exact."""

    signature = ("velocity(x,t)", "flow_map(x,t,s)")
    guidance_input = "jumps"


def row(name: str, steps: int, nfe: int, correct: float) -> MeasuredQuality:
    choice = {"name": name, "steps": steps, "guidance": 2.0}
    return MeasuredQuality(procedure=choice, nfe=nfe, samples=100, date=datetime.date(2026, 11, 26), correct=correct)


TABLE = QualityTable(
    features="none",
    rows=[
        row("flow_map", 1, 1, 0.2), row("flow_map", 2, 2, 0.5), row("flow_map", 4, 4, 0.7), row("euler", 4, 8, 0.6),
        row("euler", 10, 20, 0.8), row("euler", 20, 40, 0.9),
    ],
)  # fmt: skip


class Toy:
    """An engine with one model, `toy`, whose forwards take 10 ms and 1 ms an evaluation."""

    def __init__(self, quality: QualityTable | None = TABLE, network: Timed | None = None) -> None:
        self.clock = Clock()
        self.network = network or ToyMap()
        self.network.clock = self.clock
        pool = BlockPool(64)
        worker = LatentWorker(self.network, pool, torch.device("cpu"), Threads.of(1))
        served = picture_model(ImageHost("toy", Path("toy"), 100, self.network, pool, worker, quality), Limits(32, 512, 64))
        self.engine = Engine([served], self.clock)
        self.card: ModelCard = served.card
        self.lane = served.lane
        self.outputs = Outputs()

    def ask(self, name: str, seconds: float | None = None, procedure: dict[str, Any] | None = None, quality: Any = None) -> None:
        """A request that arrives now, with a deadline so many seconds away."""
        decision = decide(self.card, procedure, quality, seconds is not None, False)
        deadline = None if seconds is None else self.clock.now + seconds
        self.engine.take(
            Submit(
                name, "toy", decision.procedure, decision.parameters, len(name), ImageWork(name, 64, 64), self.clock.now,
                deadline=deadline, choices=decision.choices,
            )
        )  # fmt: skip

    def know_costs(self) -> None:
        for size in (1, 4, 16):
            self.lane.costs[BUCKET].observe(size, 0.01 + 0.001 * size)

    def finish(self) -> dict[str, Done]:
        while self.engine.has_work:
            self.outputs.take(self.tick())
        return self.outputs.done

    def tick(self) -> list[FromEngine]:
        return self.engine.tick()

    def request(self, name: str) -> ImageRequest:
        request = self.engine.scheduler.requests[name]
        assert isinstance(request, ImageRequest)
        return request


def ran(done: Done) -> tuple[str, int]:
    return done.ran["name"], done.ran["steps"]


def test_a_deadline_that_is_far_away_gets_the_best_that_was_measured() -> None:
    toy = Toy()
    toy.know_costs()
    toy.ask("far", 10.0)
    done = toy.finish()["far"]
    assert ran(done) == ("euler", 20)
    assert (done.usage.nfe, done.usage.planned_nfe) == (40, 40)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.5, ("euler", 20)), (0.25, ("euler", 10)), (0.1, ("flow_map", 4)), (0.02, ("flow_map", 1))]
)
def test_a_near_one_gets_the_best_that_is_in_time(seconds: float, expected: tuple[str, int]) -> None:
    toy = Toy()
    toy.know_costs()
    toy.ask("near", seconds)
    done = toy.finish()["near"]
    assert ran(done) == expected
    assert done.usage.planned_nfe == 40


def test_the_more_run_the_less_each_gets_and_all_are_in_time() -> None:
    toy = Toy()
    toy.know_costs()
    for i in range(30):
        toy.ask(f"r{i}", 0.5)
    ends = {}
    while toy.engine.has_work:
        for event in toy.tick():
            if isinstance(event, Done):
                ends[event.id] = (toy.clock.now, event)
    assert len(ends) == 30 and all(end <= 0.5 for end, _ in ends.values())
    assert all(done.ran["name"] == "flow_map" or "then" in done.ran for _, done in ends.values())


def test_it_still_runs_when_not_even_the_cheapest_is_in_time() -> None:
    toy = Toy()
    toy.know_costs()
    toy.ask("hopeless", 0.001)
    done = toy.finish()["hopeless"]
    assert ran(done) == ("flow_map", 1) and done.rgb
    assert toy.engine.gauges().deadlines_missed == {"toy": 1}


def test_jumps_take_over_when_time_runs_out_on_the_way() -> None:
    toy = Toy()
    toy.know_costs()
    toy.ask("late", 0.5)
    for _ in range(6):
        toy.tick()
    assert toy.request("late").at == 5
    toy.clock.now += 0.3  # as when something else had the device
    done = toy.finish()["late"]
    assert ran(done) == ("euler", 20) and done.ran["stopped_after"] == 5
    assert done.ran["then"]["name"] == "flow_map" and done.ran["then"]["steps"] >= 1
    assert done.usage.nfe == 10 + done.ran["then"]["steps"]
    assert toy.clock.now <= 0.5
    # The jump of this network is exact wherever it begins: the picture is that of all the steps.
    full = Toy()
    full.ask("late", None, {"name": "flow_map", "steps": 1, "guidance": 1.0})
    other = Toy()
    other.ask("late", 10.0, {"guidance": 1.0})
    pixels = [np.frombuffer(d.rgb, np.uint8).astype(int) for d in (full.finish()["late"], other.finish()["late"])]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_a_flow_map_makes_fewer_jumps_from_where_it_is() -> None:
    toy = Toy()
    toy.know_costs()
    toy.ask("r", 0.2, {"name": "flow_map"})
    toy.tick()
    toy.tick()
    request = toy.request("r")
    assert (request.at, len(request.rows)) == (1, 4)
    before = request.rows[0]
    toy.clock.now += 0.155
    toy.tick()
    assert request.rows[0] == before and len(request.rows) < 4
    here = request.rows[1]
    assert here.t == pytest.approx(before.s) and here.start is None
    assert [row.index for row in request.rows] == list(range(len(request.rows))) and request.rows[-1].after == (1.0, 0.0)
    done = toy.finish()["r"]
    assert ran(done) == ("flow_map", 2) and (done.usage.nfe, done.usage.planned_nfe) == (2, 4)


def test_explicit_steps_and_requests_without_deadline_keep_what_they_asked_for() -> None:
    toy = Toy()
    toy.know_costs()
    toy.ask("steps", 0.05, {"name": "euler", "steps": 12})
    toy.ask("quality", None, quality="best")
    toy.ask("neither")
    done = toy.finish()
    assert {name: each.usage.nfe for name, each in done.items()} == {"steps": 24, "quality": 40, "neither": 8}
    assert all(each.usage.planned_nfe is None and not each.ran for each in done.values())


def test_what_they_cost_counts_for_those_that_choose() -> None:
    toy = Toy()
    toy.know_costs()
    for i in range(31):
        toy.ask(f"other{i}", None, {"name": "euler", "steps": 30})
    toy.ask("r", 0.5)
    done = toy.finish()["r"]
    assert ran(done)[0] == "flow_map"


@pytest.mark.parametrize("sampler,steps", [("euler", 4), ("heun", 8), ("dpmpp_2m", 9)])
def test_a_network_without_jumps_makes_fewer_of_its_sampler_s_steps(sampler: str, steps: int) -> None:
    toy = Toy(None, Timed())
    toy.know_costs()
    planned = 2 * steps - 1 if sampler == "heun" else steps
    toy.ask("r", 0.016 * planned * HEADROOM, {"name": sampler, **({} if steps == 4 else {"schedule": "cosine"})})
    toy.tick()
    toy.tick()
    request = toy.request("r")
    before, at, planned = request.rows[0], request.at, len(request.rows)
    assert at == 1 and planned > 3
    toy.clock.now += 0.6 * (request.submit.deadline or 0.0)
    done = toy.finish()["r"]
    assert request.rows[0] == before and 1 < len(request.rows) < planned and request.rows[-1].after == (1.0, 0.0)
    assert [row.level for row in request.rows] == sorted((row.level for row in request.rows), reverse=True)
    assert done.ran["then"] == {"name": sampler, "steps": len(request.rows) - 1, "guidance": request.course.parameters.guidance}
    assert toy.clock.now <= (request.submit.deadline or 0.0)


def test_costs_are_learnt_before_anything_is_known() -> None:
    toy = Toy()
    toy.ask("first", 0.1)  # nothing has run: the best is tried
    toy.ask("second", 0.1)
    done = toy.finish()
    assert toy.clock.now <= 0.1 and all("then" in each.ran for each in done.values())
    assert isinstance(toy.lane.costs[BUCKET], ForwardCost)


def test_what_cannot_be_planned_anew_goes_on_as_it_is() -> None:
    class Lowest(Timed):
        """Its last two steps end at the same level of noise, from which none is left."""

        noise = NoiseProcess(times=TrainingTimes(spacing="linspace", final="lowest"), prediction="noise")
        signature = ("noise(x,t)",)

    toy = Toy(None, Lowest())
    toy.know_costs()
    toy.ask("late", 0.5, {"name": "heun", "guidance": 1.0})
    toy.tick()
    request = toy.request("late")
    while request.at < len(request.rows) - 2:
        toy.tick()
    toy.clock.now += 10.0  # as when something else had the device
    done = toy.finish()["late"]
    assert done.rgb and "then" not in done.ran and done.usage.nfe == len(request.rows)


def test_a_model_without_a_class_for_no_text_is_not_asked_for_one_where_nothing_is_guided() -> None:
    class Classes(Timed):
        def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
            if "" in texts:
                raise ValueError("there is no class for an empty prompt")
            return super().encode(texts, negative)

    toy = Toy(None, Classes())
    toy.ask("plain", 10.0, {"guidance": 1.0})
    toy.ask("guided", 10.0, {"guidance": 2.0})
    assert toy.finish()["plain"].rgb and set(toy.outputs.failed) == {"guided"}


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("sampler", ["heun", "euler"])
def test_who_is_hurried_has_fewer_rows_whatever_part_of_the_way_is_gone(sampler: str, strength: float) -> None:
    toy = Toy(None, Timed())
    toy.ask("r", 100.0, {"name": sampler, "strength": strength})
    toy.tick()
    toy.tick()
    request = toy.request("r")
    while (left := len(request.rows) - request.at) > 2:
        request.hasten(left - 1)
        assert 1 <= len(request.rows) - request.at <= left - 1
    request.hasten(left)
    assert len(request.rows) - request.at == left, "what takes as long is no haste"


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_who_is_hurried_is_told_the_noise_that_there_is(sampler: str) -> None:
    """Churn adds noise before a step, the first of which would be that of a first state."""
    toy = Toy(None, Timed())
    toy.ask("r", 100.0, {"name": sampler, "churn": 40.0})
    toy.tick()
    toy.tick()
    request = toy.request("r")
    request.hasten(len(request.rows) - request.at - 1)
    assert request.course.rest is not None
    assert request.rows[request.at].t == pytest.approx(request.rows[request.at - 1].after[1])


def test_what_ran_from_a_given_picture_says_how_to_run_it_again() -> None:
    toy = Toy()
    toy.ask("whole", 10.0, {"name": "flow_map", "strength": 0.5})
    toy.ask("hurried", 10.0, {"name": "flow_map", "strength": 0.99})
    toy.tick()
    toy.tick()
    toy.request("hurried").hasten(1)
    done = toy.finish()
    assert (done["whole"].ran["steps"], done["whole"].usage.nfe) == (4, 2)
    assert (done["hurried"].ran["steps"], done["hurried"].ran["stopped_after"]) == (4, 1)
    assert done["hurried"].ran["then"]["steps"] == 1


def test_as_many_previews_come_as_are_wanted_whatever_runs_in_the_end() -> None:
    for rows, wanted, shown in ((20, 3, 3), (8, 3, 3), (4, 3, 3), (2, 3, 1), (1, 3, 0)):
        toy = Toy()
        toy.ask("r")
        toy.request("r").work = msgspec.structs.replace(toy.request("r").work, previews=wanted)
        toy.request("r").take("euler", {"steps": rows, "guidance": 1.0})
        events = []
        while toy.engine.has_work:
            events += toy.tick()
        steps = [event.step for event in events if isinstance(event, Preview)]
        assert len(steps) >= shown and all(0 < step < rows for step in steps)


def test_what_cannot_begin_at_pure_noise_is_no_help_and_no_defect() -> None:
    class Sprint(Timed):
        """As Sana-Sprint: its noise has no end, so that heun has no table, and guidance is an argument."""

        noise = NoiseProcess(times=AngleTimes(), prediction="velocity")
        guidance_input = "always"
        scorers = ("grey",)

    card = Toy(None, Sprint()).card
    assert "heun" in card.procedures
    with pytest.raises(InvalidField, match="takes guidance as an input"):
        check_negative(card, "ddim", procedure_parameters(card, {"name": "ddim"})[1])
    search = {"method": "particles", "scorer": "grey", "particles": 4}
    with pytest.raises(InvalidField, match="draws none"):
        checked_search(card, search, "ddim", procedure_parameters(card, {"name": "ddim"})[1], 1)
