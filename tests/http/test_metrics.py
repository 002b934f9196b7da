"""Metrics are right under concurrency and across the process border."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx

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


def test_documentation_is_served(server: Server) -> None:
    paths = httpx.get(server.url + "/openapi.json").json()["paths"]
    for route in ("/v1/completions", "/v1/chat/completions", "/v1/images/generations", "/v1/generate", "/v1/procedures"):
        assert route in paths
    assert httpx.get(server.url + "/docs").status_code == 200
    procedures = {p["name"]: p for p in httpx.get(server.url + "/v1/procedures").json()["data"]}
    assert procedures["euler"]["parameters"]["properties"]["steps"]["minimum"] == 1
    assert procedures["flow_map"]["models"] == ["shapes"]
