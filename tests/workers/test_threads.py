"""A long forward gets every processor, a short one leaves one to the front end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from service.workers.threads import LONG, Threads


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_follow_the_length_of_the_forward() -> None:
    threads = Threads(1, 2)
    for operations, expected in ((LONG, 2), (LONG / 2, 1), (10 * LONG, 2)):
        threads.take(operations)
        assert torch.get_num_threads() == expected


def test_a_setting_is_for_every_forward_and_zero_leaves_one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Threads.of(3) == Threads(3, 3)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert Threads.of(0) == Threads(7, 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert Threads.of(0) == Threads(1, 1)
