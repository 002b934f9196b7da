"""Metrics are right under concurrency and across the process border."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.engine.reports import Gauges
from service.metrics import Metrics
from tests.http.server import Server

NAMES = [
    "requests_total",
    "requests_running",
    "requests_waiting",
    "queue_seconds",
    "time_to_first_output_seconds",
    "inter_token_seconds",
    "request_seconds",
    "moves_total",
    "forward_seconds",
    "batch_rows",
    "batch_tokens",
    "tokens_total",
    "refine_steps_total",
    "images_total",
    "kv_blocks",
    "preemptions_total",
    "deadlines_missed_total",
    "scheduler_seconds",
    "device_busy_ratio",
    "engine_up",
    "engine_restarts_total",
    "build_info",
]


def test_counts_of_an_engine_that_was_started_again_are_added_also_where_nobody_looked_meanwhile() -> None:
    metrics = Metrics()

    def report(missed: int) -> None:
        metrics.observe(Gauges({}, {}, {}, 0.0, {"shapes": missed}, {}, 0))

    for counted in ([1, 3], [2, 2]):
        metrics.served([], [])
        for missed in counted:
            report(missed)
    assert metrics.registry.get_sample_value("stride_deadlines_missed_total", {"model": "shapes"}) == 3 + 2


def test_every_metric_of_the_contract_is_there(server: Server) -> None:
    text = httpx.get(server.url + "/metrics").text
    declared = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert not {f"stride_{name}" for name in NAMES} - declared


def test_counts_add_up_under_concurrency(server: Server) -> None:
    server.until(server.is_idle)
    before = {
        "requests": server.metric("stride_requests_total"),
        "generated": server.metric("stride_tokens_total", kind="generated"),
        "prompt": server.metric("stride_tokens_total", kind="prompt"),
        "cached": server.metric("stride_tokens_total", kind="cached"),
        "images": server.metric("stride_images_total"),
        "steps": server.metric("stride_refine_steps_total", model="shapes"),
    }

    def ask(i: int) -> None:
        if i % 3:
            body = {"model": "shakespeare", "prompt": "x" * (10 + i), "max_tokens": 10 + i, "ignore_eos": True}
        else:
            body = {"model": "shapes", "prompt": "a red circle", "procedure": {"name": "flow_map", "steps": 3}}
        assert server.post("/v1/generate", body).status_code == 200

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(ask, range(24)))
    server.until(server.is_idle)
    sizes = sum(10 + i for i in range(24) if i % 3)
    assert server.metric("stride_requests_total") - before["requests"] == 24
    assert server.metric("stride_tokens_total", kind="generated") - before["generated"] == sizes
    computed = server.metric("stride_tokens_total", kind="prompt") - before["prompt"]
    cached = server.metric("stride_tokens_total", kind="cached") - before["cached"]
    assert computed + cached == sizes and 0 < cached < sizes  # what begins alike is computed once
    assert server.metric("stride_images_total") - before["images"] == 8
    assert server.metric("stride_refine_steps_total", model="shapes") - before["steps"] == 24


def test_every_name_and_type_is_as_prometheus_wants_it(server: Server) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool, of Prometheus, is not installed")
    text = httpx.get(server.url + "/metrics").text
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert checked.returncode == 0 and not checked.stderr, checked.stderr


def test_counters_of_what_is_served_are_there_before_anything_happened(server: Server) -> None:
    """A counter whose first sample is its first event shows no rise: an alert would miss that event."""
    samples = httpx.get(server.url + "/metrics").text
    for sample in (
        'stride_deadlines_missed_total{model="shapes"}',
        'stride_requests_total{model="shakespeare",outcome="error",procedure="speculative"}',
        'stride_refusals_total{outcome="queue_full"}',
        'stride_waited_seconds_total{behind="shapes",model="shakespeare"}',
        'stride_procedure_info{axis="both",model="shakespeare",procedure="block_diffusion"} 1.0',
        'stride_tokens_total{kind="accepted",model="shakespeare"}',
        'stride_refine_steps_total{model="shapes"}',
        'stride_images_total{model="shapes",procedure="dpmpp_2m"}',
        'stride_deadline_choices_total{model="shapes",outcome="shortened",procedure="flow_map"}',
        'stride_request_tokens_total{model="shakespeare",procedure="block_diffusion"}',
        'stride_request_forwards_total{model="shakespeare",procedure="block_diffusion"}',
    ):
        assert f"\n{sample}" in samples, sample
    assert server.metric("stride_requests_limit") == 1024 + 2 * 64


def test_what_texts_and_pictures_cost_is_counted_by_their_procedure(server: Server) -> None:
    def ask(body: dict) -> dict:
        answer = server.post("/v1/generate", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    names = {"model": "shakespeare", "procedure": "block_diffusion"}
    counted = lambda name: server.metric(f"stride_request_{name}_total", **names)  # noqa: E731
    forwards, tokens = counted("forwards"), counted("tokens")
    text = {"model": "shakespeare", "prompt": "ROMEO:", "max_tokens": 32, "procedure": {"name": "block_diffusion"}, "seed": 1}
    usage = ask(text)["usage"]
    assert counted("forwards") - forwards == usage["forwards"] and counted("tokens") - tokens == usage["generated_tokens"]
    nfe, pictures = (server.metric(f"stride_nfe_{part}", model="shapes", procedure="heun") for part in ("sum", "count"))
    ask({"model": "shapes", "prompt": "a red circle", "procedure": {"name": "heun", "steps": 3, "guidance": 1}})
    assert server.metric("stride_nfe_sum", model="shapes", procedure="heun") - nfe == 5
    assert server.metric("stride_nfe_count", model="shapes", procedure="heun") - pictures == 1


def test_what_deadlines_left_of_pictures_is_counted(server: Server) -> None:
    picture = {"model": "shapes", "prompt": "a red circle"}
    server.post("/v1/generate", picture | {"quality": "draft"})  # so that what a forward costs is known
    before = {name: server.metric(f"stride_deadline{name}_total", model="shapes") for name in ("s", "_choices", "s_missed")}
    planned, made = (server.metric("stride_deadline_evaluations_total", outcome=each) for each in ("planned", "made"))
    for milliseconds in (2000, 60_000):
        answer = server.post("/v1/generate", picture | {"deadline_ms": milliseconds, "n": 2, "quality": "best"})
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
        planned, made = planned + usage["planned_nfe"], made + usage["nfe"]
    assert server.metric("stride_deadlines_total", model="shapes") == before["s"] + 4
    assert server.metric("stride_deadline_choices_total", model="shapes") == before["_choices"] + 4
    assert server.metric("stride_deadline_choices_total", model="shapes", outcome="full") >= 2
    for outcome, evaluations in (("planned", planned), ("made", made)):
        assert server.metric("stride_deadline_evaluations_total", outcome=outcome) == evaluations


def test_refusals_are_counted_by_what_they_are(server: Server) -> None:
    invalid = server.metric("stride_refusals_total", outcome="invalid")
    assert server.post("/v1/generate", {"model": "shapes"}).status_code == 400
    assert server.post("/v1/generate", {"model": "nobody's", "prompt": "O"}).status_code == 404
    assert httpx.get(server.url + "/nothing").status_code == 404  # not of the API
    assert server.metric("stride_refusals_total", outcome="invalid") == invalid + 2


def test_forwards_say_how_full_they_were_and_whom_they_left_standing(server: Server) -> None:
    def of(name: str, **labels: str) -> float:
        return server.metric(f"stride_{name}", **labels)

    filled, behind = of("batch_fill_ratio_sum", model="shapes"), of("waited_seconds_total", model="shakespeare", behind="shapes")
    slow = {"model": "shapes", "prompt": "a red circle", "procedure": {"name": "euler", "steps": 150}}
    with ThreadPoolExecutor(2) as pool:
        picture = pool.submit(server.post, "/v1/generate", slow)
        server.until(lambda: of("requests_running", model="shapes") == 1)
        text = {"model": "shakespeare", "prompt": "O", "max_tokens": 100, "ignore_eos": True}
        assert server.post("/v1/generate", text).status_code == picture.result().status_code == 200
    # A request that is alone takes one row of 32, or more where its evaluations are dear.
    assert of("batch_fill_ratio_sum", model="shapes") - filled > 150 / 32
    assert of("waited_seconds_total", model="shakespeare", behind="shapes") > behind


def test_documentation_is_served(server: Server) -> None:
    paths = httpx.get(server.url + "/openapi.json").json()["paths"]
    for route in ("/v1/completions", "/v1/chat/completions", "/v1/images/generations", "/v1/generate", "/v1/procedures"):
        assert route in paths
    assert httpx.get(server.url + "/docs").status_code == 200
    procedures = {p["name"]: p for p in httpx.get(server.url + "/v1/procedures").json()["data"]}
    assert procedures["euler"]["parameters"]["properties"]["steps"]["minimum"] == 1
    assert procedures["flow_map"]["models"] == ["shapes"]
