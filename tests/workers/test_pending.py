"""What is told of launched work: how long the device took, and what its failure leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from service.procedures.picture_rows import LatentRow
from service.procedures.types import Axis, TokenRow
from service.workers.block_pool import BlockPool
from service.workers.latent_worker import LatentWorker
from service.workers.pending import Launched, Span
from service.workers.threads import Threads
from service.workers.token_reader import TokenReader
from service.workers.types import Draws, Encoded, EncodeMove, Picture, RefineMove, ScoreMove, TokenMove
from tests.latent_networks import ToyNetwork
from tests.workers.test_drafters import DRAWS, PROMPTS, drafting, writers

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Clock:
    """Of a stream, in milliseconds."""

    now = 0.0


class Event:
    """As those of CUDA: no time lies between two of which one was never recorded."""

    def __init__(self, enable_timing: bool) -> None:
        self.at: float | None = None

    def record(self) -> None:
        self.at = Clock.now

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        if self.at is None or other.at is None:
            raise RuntimeError("both events must be recorded")
        return other.at - self.at


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Clock, "now", 0.0)


def test_what_the_device_did_only_when_outcomes_were_asked_for_counts_too(events: None) -> None:
    later: list[Span] = []

    def finish() -> list[int]:
        span = Span(GPU)
        Clock.now += 500.0
        span.close()
        later.append(span)
        return [1]

    first = Span(GPU)
    Clock.now += 2000.0
    first.close()
    Clock.now += 10_000.0  # what was launched in between
    launched = Launched(first, finish, later=later)
    assert launched.wait(0.0) and launched.seconds() == 2.0
    assert launched.outcomes() == [1] and launched.seconds() == 2.5


def test_of_the_hosts_work_the_device_tells_no_time(events: None) -> None:
    worker = LatentWorker(ToyNetwork(), BlockPool(2), CPU, Threads.of(1))
    worker.device = GPU
    launched = worker.launch([ScoreMove("sharpness", "", Picture(8, 8, bytes(8 * 8 * 3)))])
    assert launched.wait(0.0) and len(launched.outcomes()) == 1 and launched.seconds() is None


def test_guessing_is_part_of_what_a_forward_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Second:
        """A stretch of a second."""

        def __init__(self, device: torch.device) -> None: ...
        def close(self) -> None: ...
        def wait(self) -> None: ...
        def seconds(self) -> float:
            return 1.0

    monkeypatch.setattr("service.workers.token_worker.Span", Second)
    model, drafter = drafting(tmp_path, "draft_model")
    for guesses, expected in ((0, 1.0), (3, 2.0)):
        (writer,) = writers(model, drafter, guesses, PROMPTS[:1], DRAWS[:1])
        launched = model.worker.launch([writer.move()])
        launched.outcomes()
        assert launched.seconds() == expected


def test_a_forward_that_fails_when_it_shows_something_has_moved_no_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ToyNetwork()
    monkeypatch.setattr(network, "decodes", False)
    worker = LatentWorker(network, BlockPool(2), CPU, Threads.of(1))
    (encoded,) = worker.run([EncodeMove(("a red fox",), 64, 64)])
    assert isinstance(encoded, Encoded)
    row = LatentRow(1, 0.5, 0.5, (2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0), 1.0, False, 0)
    worker.store.fill_(1.0)
    move = RefineMove(row, 1, 0, 64, 64, encoded, True, True)

    def fails(latents: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory is left")

    with monkeypatch.context() as patched:
        patched.setattr(network, "decode", fails)
        with pytest.raises(torch.OutOfMemoryError):
            worker.launch([move])
    assert bool((worker.store == 1.0).all())
    worker.run([move])
    assert not bool((worker.store[1] == 1.0).all())


class NumbersPut(TorchDispatchMode):
    """Counts numbers of the host that are put at indices: on a GPU the host waits until each has been copied there."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        named = function._schema.name.startswith("aten::index_put")
        self.found += bool(named and args[2].ndim == 0)
        return function(*args, **(kwargs or {}))


def test_reading_puts_no_number_of_the_host_at_indices() -> None:
    """A GPU's host would wait for the forward on its way."""
    reader = TokenReader([3, 5], CPU, Threads.of(1))
    row = TokenRow(Axis.EXPAND, (1, 2), 0, "causal", True, (1,))
    draws = (Draws(1, 0.0), Draws(2, 1.0, top_k=4, bias={7: 2.0}, logprobs=3))
    with NumbersPut() as counting:
        unread = reader.read([TokenMove((row,), [0], draw) for draw in draws], torch.randn(2, 40))
    assert counting.found == 0 and len(unread.outcomes()) == 2
    with NumbersPut() as counting:
        torch.zeros(2, 4)[:, torch.tensor([1])] = 1.0
    assert counting.found == 1
