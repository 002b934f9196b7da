"""`make benchmark`: what batching gains, on a quiet machine."""

from __future__ import annotations

import statistics

import pytest

from tests.benchmarks.throughput import measure


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_sixteen_requests_share_forwards_and_finish_sooner_than_one_after_another() -> None:
    for load, ratios in measure(count=16, tokens=200, repeats=3).items():
        assert statistics.median(ratios) > (1.5 if load == "images" else 3.0), f"{load}: {ratios}"
