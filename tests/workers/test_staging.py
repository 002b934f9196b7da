"""Numbers on their way to a device, in one buffer."""

from __future__ import annotations

import numpy as np
import torch

from service.workers.pending import Launched, Span, fetched
from service.workers.staging import staged, to_device
from service.workers.streams import streams_of

CPU = torch.device("cpu")


def test_lists_of_all_lengths_arrive_as_they_are() -> None:
    longs = [[1, -2, 2**62], [], range(5)]
    floats = [[0.1, -1e30], [], [float("inf")]]
    whole, broken = staged(CPU, longs, floats)
    for given, tensor in zip(longs, whole, strict=True):
        assert tensor.dtype == torch.int64 and tensor.tolist() == list(given)
    for given, tensor in zip(floats, broken, strict=True):
        assert torch.equal(tensor, torch.tensor(given, dtype=torch.float32))
    assert len({tensor.untyped_storage().data_ptr() for tensor in [*whole, *broken]}) == 1, "one copy"
    assert torch.equal(to_device(np.array([[1, 2]], np.uint8), CPU), torch.tensor([[1, 2]], dtype=torch.uint8))


def test_on_a_cpu_work_is_over_when_it_was_launched() -> None:
    span = Span(CPU)
    with streams_of(CPU).main(), streams_of(CPU).beside("decode") as aside:
        tensor = torch.ones(2)
    span.close()
    launched = Launched(span, lambda: fetched(tensor).tolist(), aside)
    assert not launched.aside and launched.wait(0.0) and launched.outcomes() == [1.0, 1.0] and launched.seconds() is None
