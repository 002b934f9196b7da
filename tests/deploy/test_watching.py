"""A service under traffic of all kinds, and a real Prometheus that watches it: every expression that the dashboards and the rules
are made of gives what it is there for, and alerts come and go with their faults."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from tests.deploy.panels import Shown, filled, shown, variables
from tests.deploy.prometheus import PROMETHEUS, RULES, Prometheus, Sample, without_comparison
from tests.deploy.traffic import LONG, Traffic, ask, flood, of_all_kinds
from tests.http.server import Server

pytestmark = [
    pytest.mark.skipif(PROMETHEUS is None, reason="Prometheus is not installed"),
    pytest.mark.timeout(600),
]

PATIENCE = 180.0
"""Seconds until what must come has come, on a machine with other things to do."""


class Watched:
    """The service with little room: four requests of a model at a time, 12 more in the queue, 18 KV blocks."""

    def __init__(self, folder: Path) -> None:
        little = ("--max-running", "4", "--max-waiting", "12", "--kv-memory", str(1 << 20))
        self.server = Server(folder / "server.log", *little, ready_seconds=PATIENCE)
        self.instance = self.server.url.removeprefix("http://")
        (folder / "prometheus").mkdir()
        self.prometheus = Prometheus(folder / "prometheus", self.instance)

    def stop(self) -> None:
        self.prometheus.stop()
        if self.server.process.poll() is None:
            self.server.stop()

    def until_firing(self, *names: str) -> None:
        """Each of these alerts has fired."""
        seen: set[str] = set()

        def all_seen() -> bool:
            seen.update(self.prometheus.firing())
            return seen.issuperset(names)

        self.prometheus.until(all_seen, PATIENCE, lambda: f"only {sorted(seen)} fired, not all of {names}")

    def until_quiet(self) -> None:
        self.prometheus.until(
            lambda: not self.prometheus.firing(), PATIENCE, lambda: f"{self.prometheus.firing()} still fire"
        )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    watched = Watched(tmp_path_factory.mktemp("watched"))
    yield watched
    watched.stop()


@contextmanager
def engine_held_down(server: Server) -> Iterator[None]:
    """Kills every engine that the front end starts, as soon as it is there."""
    done = threading.Event()

    def hold() -> None:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        while not done.wait(0.05):
            for pid in children.read_text().split():
                with suppress(OSError):
                    if b"service.engine.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(int(pid), signal.SIGKILL)

    killer = threading.Thread(target=hold)
    killer.start()
    try:
        yield
    finally:
        done.set()
        killer.join()


MOVED = [
    'stride_requests_total{outcome="cancelled"}',
    'stride_requests_total{outcome="deadline"}',
    'stride_refusals_total{outcome="invalid"}',
    'stride_preemptions_total',
    'stride_deadlines_missed_total',
    'stride_waited_seconds_total{model="shakespeare", behind="shapes"}',
    'stride_waited_seconds_total{model="shapes", behind="shakespeare"}',
    'stride_batch_fill_ratio_sum',
    'stride_request_tokens_total{procedure="speculative"}',
    'stride_request_tokens_total{procedure="block_diffusion"}',
    'stride_deadline_choices_total{outcome="full"}',
    *(f'stride_tokens_total{{kind="{kind}"}}' for kind in ("prompt", "cached", "generated", "drafted", "accepted", "revised")),
    *(f'stride_moves_total{{axis="{axis}"}}' for axis in ("expand", "refine")),
    *(f'stride_nfe_count{{procedure="{procedure}"}}' for procedure in ("euler", "heun", "flow_map")),
]  # fmt: skip
"""What traffic of all kinds sets in motion, so that panels are not merely flat."""


def lacks(one: Shown, samples: list[Sample]) -> str:
    """What is missing for a panel to be drawn; empty when nothing is."""
    if not any(sample.finite for sample in samples):
        return f"no numbers among {len(samples)} series"
    nameless = [sample.labels for sample in samples if not all(sample.labels.get(label) for label in one.labels)]
    return f"the legend needs {set(one.labels)}, of which {nameless[0]} lacks some" if nameless else ""


def recorded_and_compared() -> list[str]:
    """What the rules record, and what their alerts look at."""
    rules = [
        rule for file in RULES for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
    ]
    names = [rule["record"] for rule in rules if "record" in rule]
    compared = [side for rule in rules if "alert" in rule for side in without_comparison(rule["expr"])]
    assert len(names) > 5 and len(compared) > 5
    return names + [re.sub(r"\[\d+m\]", "[10s]", side) for side in compared]


def test_every_expression_of_every_panel_and_rule_gives_numbers_with_the_labels_that_it_needs(watched: Watched) -> None:
    values = {"instance": [watched.instance], "model": ["shakespeare", "shapes"]}
    every = [
        Shown(one.where, filled(side, values, "10s"), one.labels)
        for one in shown()
        for side in ([one.expression] if "annotation" not in one.where else without_comparison(one.expression))
    ]
    every += [Shown("traffic", f"sum({series}) > 0", frozenset()) for series in MOVED]
    every += [Shown("rules", expression, frozenset()) for expression in recorded_and_compared()]
    assert len(every) > 100
    missing = {one: "not asked yet" for one in every}

    def ask_for_what_is_missing() -> bool:
        for one in list(missing):
            missing[one] = lacks(one, watched.prometheus.query(one.expression))
            if not missing[one]:
                del missing[one]
        return not missing

    def told() -> str:
        return "\n".join(f"{one.where}: {why}\n  {one.expression}" for one, why in missing.items())

    with Traffic(watched.server.url, *of_all_kinds()):
        watched.prometheus.until(ask_for_what_is_missing, PATIENCE, told)


def test_every_variable_offers_what_is_served(watched: Watched) -> None:
    offered = {"instance": [watched.instance], "model": ["shakespeare", "shapes"]}
    assert variables().keys() == offered.keys()
    for name, query in variables().items():
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", filled(query, {"instance": offered["instance"]}, ""))
        assert found is not None
        assert watched.prometheus.get(f"label/{found[2]}/values", **{"match[]": found[1]}) == offered[name]


def test_nothing_is_wrong_with_a_service_that_is_idle(watched: Watched) -> None:
    watched.until_quiet()
    loaded = {alert["name"] for group in watched.prometheus.get("rules", type="alert")["groups"] for alert in group["rules"]}
    assert {"StrideDown", "StrideEngineDown", "StrideQueueGrowing"} <= loaded


@pytest.mark.slow
def test_a_flood_raises_its_alerts_which_clear_after_it(watched: Watched) -> None:
    with Traffic(watched.server.url, *flood(24)):
        watched.until_firing("StrideQueueGrowing", "StrideQueueFull", "StrideKVPoolFull", "StrideDeadlinesMissed")
    watched.until_quiet()


def test_an_engine_that_is_killed_raises_its_alerts_which_clear_when_it_is_back(watched: Watched) -> None:
    with Traffic(watched.server.url, *[[ask(**LONG, seed=seed)] for seed in range(4)]):
        watched.server.until(lambda: watched.server.metric("stride_requests_running") > 0)
        with engine_held_down(watched.server):
            watched.until_firing("StrideEngineDown", "StrideErrorRatio", "StrideEngineRestarting")
            (held,) = watched.prometheus.query("sum(stride_requests_running + stride_requests_waiting)")
            assert held.value == 0  # whatever the engine said last
    watched.server.wait_ready(PATIENCE)
    watched.until_quiet()


def test_a_service_that_is_gone_raises_an_alert(watched: Watched) -> None:
    watched.server.stop()
    watched.until_firing("StrideDown")
