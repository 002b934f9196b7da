"""Captured forwards, with a capture that calls the function again: buckets, padding, copies."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.models.class_conditional import ClassConditional
from service.models.flow_network import FlowNetwork
from service.models.latent_network import PackableNetwork
from service.workers.block_pool import BlockPool
from service.workers.denoising_graphs import SIZES
from service.workers.graphs import CapturedRows, sizes_up_to
from service.workers.hosting import Hosting, ImageHost, host
from service.workers.latent_worker import LatentWorker
from service.workers.threads import Threads
from tests.calling_again import CalledAgain
from tests.checkpoints import write_flow_transformer
from tests.engine.test_pictures import Outputs, engine_of, finish_all, pixels, request
from tests.latent_networks import ToyNetwork


def test_every_number_of_rows_gives_what_the_function_gives_and_padding_is_only_padding() -> None:
    seen: list[tuple[int, Tensor, Tensor]] = []

    def function(rows: int, x: Tensor, slots: Tensor) -> Tensor:
        assert len(x) == len(slots) == rows
        seen.append((rows, x.clone(), slots.clone()))
        return 2 * x + slots[:, None]

    capture = CalledAgain()
    captured = CapturedRows(function, [torch.zeros(3), torch.tensor(-1)], sizes_up_to(20), capture)
    captured.prepare()
    assert capture.captures == len(captured.sizes) and capture.replays == 0
    for rows in [20, *range(1, 21), 3]:  # large ones first: what they leave in the buffers must not be seen
        x, slots = torch.randn(rows, 3), torch.arange(100, 100 + rows)
        assert torch.equal(captured(x, slots), 2 * x + slots[:, None])
        size, padded, where = seen[-1]
        assert size == captured.size_for(rows) == min(each for each in captured.sizes if each >= rows)
        assert bool((padded[rows:] == 0).all()) and bool((where[rows:] == -1).all())
    assert capture.captures == len(captured.sizes)
    assert captured.size_for(21) is None and captured.size_for(0) is None


def test_sizes_are_few_and_waste_little() -> None:
    assert sizes_up_to(1) == [1] and sizes_up_to(4) == [1, 2, 4] and sizes_up_to(20) == [1, 2, 4, 8, 16, 20]
    for most in (64, 100, 256):
        sizes = sizes_up_to(most)
        assert sizes == sorted(set(sizes)) and sizes[-1] == most and len(sizes) <= 20
        assert all(after - before <= max(before, 8) for before, after in pairwise(sizes))


class PackingToy(ToyNetwork):
    """The same network as a function of tensors."""

    def pack(self, conditions: Any) -> tuple[Tensor, ...]:
        return (torch.stack([condition.tensors["mean"] for condition in conditions]),)

    def evaluate_packed(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, *packed: Tensor) -> Tensor:
        (data,) = packed
        return (x - 0.3 * torch.tanh(data).view(-1, 1, 1, 1)) / t.clamp_min(1e-3).view(-1, 1, 1, 1)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_pictures_are_the_same_whether_their_evaluations_are_captured(count: int) -> None:
    requests = [request(f"r{i}", f"text {i}", ((64, 64), (32, 64))[i % 2], seed=i) for i in range(count)]
    requests.append(request("bright", adapters=[("brighter", 0.5)]))

    def outputs(capture: CalledAgain | None) -> Outputs:
        network = PackingToy()
        engine = engine_of(network)
        if capture is not None:
            served = engine.models["toy"]
            worker = LatentWorker(network, BlockPool(64), torch.device("cpu"), Threads.of(1), capture=capture)
            engine.models["toy"] = type(served)(served.card, served.lane, worker)
        return finish_all(engine, requests)

    capture = CalledAgain()
    captured, plain = outputs(capture), outputs(None)
    assert capture.replays > 0 and capture.captures <= 2 * len(SIZES)
    for each in requests:
        assert (pixels(captured, each.id) == pixels(plain, each.id)).all()


def test_what_cannot_be_captured_is_evaluated_as_it_is() -> None:
    class Short(CalledAgain):
        def __call__(self, function: Any) -> Any:
            self.captures += 1
            raise torch.OutOfMemoryError("no memory is left")

    network, capture = PackingToy(), Short()
    engine, requests = engine_of(network), [request("r0", seed=1)]
    served = engine.models["toy"]
    worker = LatentWorker(network, BlockPool(64), torch.device("cpu"), Threads.of(1), capture=capture)
    engine.models["toy"] = type(served)(served.card, served.lane, worker)
    outputs, plain = finish_all(engine, requests), finish_all(engine_of(PackingToy()), requests)
    assert (pixels(outputs, "r0") == pixels(plain, "r0")).all()
    worker.prepare()
    assert capture.captures == 1, "once is enough to know"


def test_sizes_of_pictures_that_were_seen_can_be_prepared() -> None:
    network, capture = PackingToy(), CalledAgain()
    engine = engine_of(network)
    served = engine.models["toy"]
    worker = LatentWorker(network, BlockPool(64), torch.device("cpu"), Threads.of(1), capture=capture)
    engine.models["toy"] = type(served)(served.card, served.lane, worker)
    worker.prepare()
    assert capture.captures == 0
    finish_all(engine, [request("r0")])
    worker.prepare()
    assert capture.captures == len(SIZES)
    finish_all(engine, [request(f"s{i}", seed=i) for i in range(3)])
    assert capture.captures == len(SIZES)


def test_captions_of_all_lengths_are_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.models.flow_serving.library", lambda: None)
    write_flow_transformer(tmp_path / "image")
    hosted = host(f"image={tmp_path / 'image'},dtype=float32", Hosting("cpu", 1, 1 << 20, 16, 4, False))
    assert isinstance(hosted, ImageHost)
    network = hosted.network
    assert isinstance(network, PackableNetwork)
    conditions = network.encode(["", "3", "512"])
    x, t = torch.randn(3, *network.latent_shape(8, 8)), torch.tensor([0.2, 0.5, 0.9])
    with torch.inference_mode():
        packed = network.evaluate_packed(x, t, t, torch.ones(3), *network.pack(conditions))
        alone = [network.evaluate(x[i : i + 1], t[[i]], t[[i]], torch.ones(1), [conditions[i]], [()]) for i in range(3)]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_which_networks_can_be_captured() -> None:
    assert all(issubclass(network, PackableNetwork) for network in (ClassConditional, FlowNetwork, PackingToy))
    assert not issubclass(ToyNetwork, PackableNetwork), "its conditions might differ in shape"
