"""How a device's memory is divided: numbers, and models on a device that is measured as a GPU is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.assembly import build_engine
from service.engine.lane import Limits
from service.models.errors import ModelError
from service.settings import Settings
from service.workers import hosting
from service.workers.memory_plan import DeviceMemory, PictureDemand, TextDemand, planned
from tests.checkpoints import write_decoder, write_flow_transformer
from tests.engine.driving import finish_all, image_request, text_request

GiB = 1 << 30
PIXELS = 256 * 256


def gpu(total: float, taken: float, fraction: float = 0.9) -> DeviceMemory:
    return DeviceMemory("cuda:0", int(total * GiB), int(taken * GiB), fraction)


def test_one_text_model_gets_all_that_weights_and_its_largest_forward_leave() -> None:
    demand = TextDemand("chat", 1 * GiB, 2 << 20, 32, 1_000_000)
    plan = planned(gpu(80, 16), [demand], [])
    assert plan.blocks == {"chat": (72 - 16 - 1) * 512}


def test_two_text_models_share_alike_and_what_one_cannot_use_is_the_others() -> None:
    large, small = TextDemand("large", GiB, 1 << 20, 10, 10**6), TextDemand("small", 2 * GiB, 1 << 18, 10, 4096)
    plan = planned(gpu(40, 10), [large, small], [])
    assert plan.blocks["small"] == 4096, "1 GiB, all that it can use"
    assert plan.blocks["large"] == (36 - 10 - 2 - 1) * 1024
    alike = planned(gpu(40, 10), [large, TextDemand("other", GiB, 1 << 20, 10, 10**6)], [])
    assert abs(alike.blocks["large"] - alike.blocks["other"]) <= 1 and sum(alike.blocks.values()) == 25 * 1024


def test_forwards_of_pictures_have_rows_for_their_memory_and_leave_half_to_texts() -> None:
    picture = PictureDemand("draw", GiB, 2 * GiB / PIXELS, 2 * PIXELS, 64 * PIXELS, beside=GiB)
    alone = planned(gpu(24, 10, 1.0), [], [picture])
    assert alone.pixels["draw"] // PIXELS == (24 - 10 - 1 - 1) // 2
    text = TextDemand("chat", GiB, 1 << 20, 1024, 10**6)
    beside = planned(gpu(24, 10, 1.0), [text], [picture])
    # 14 GiB: 5 for a pair of evaluations, 1 beside, 1 of cache; of the 7 that are left half each.
    assert beside.blocks["chat"] == 1024 + 3584 and beside.pixels["draw"] // PIXELS == 3


def test_pictures_that_need_little_are_bounded_by_what_they_can_use() -> None:
    picture = PictureDemand("draw", 0, 1.0, 2 * PIXELS, 64 * PIXELS)
    plan = planned(gpu(24, 1), [TextDemand("chat", 0, 1 << 20, 1, 10**6)], [picture])
    assert plan.pixels["draw"] == 64 * PIXELS and plan.blocks["chat"] > 20 * 1024


def test_models_that_do_not_fit_are_told_what_they_need_and_what_there_is() -> None:
    text = TextDemand("chat", 2 * GiB, 1 << 20, 1024, 10**6)
    with pytest.raises(ModelError) as error:
        planned(gpu(24, 20), [text], [PictureDemand("draw", 0, 1.0, 1, 1, beside=GiB)])
    needed = ("do not fit on cuda:0", "2 GiB for the largest", "1 GiB to encode", "1 GiB for the shortest KV cache")
    there = ("of 24 GiB 1.6 GiB is left", "20 GiB is taken", "memory_fraction is 0.9", "2.4 GiB is missing")
    assert all(part in str(error.value) for part in needed + there)
    with pytest.raises(ModelError, match="nothing is left"):
        planned(gpu(24, 23), [text], [])


@given(
    st.integers(1, 80), st.floats(0.0, 1.0), st.floats(0.5, 1.0),
    st.lists(st.tuples(st.integers(0, 2 * GiB), st.integers(1, 4 << 20), st.integers(1, 64), st.integers(0, 10**5)), max_size=3),
    st.lists(st.tuples(st.integers(0, GiB), st.floats(0.0, 1e5), st.integers(1, 64), st.integers(0, GiB)), max_size=2),
)  # fmt: skip
def test_nothing_is_given_twice(
    total: int, taken: float, fraction: float, texts: list[tuple[int, ...]], pictures: list[tuple[int, float, int, int]]
) -> None:
    device = gpu(total, total * taken, fraction)
    own = [TextDemand(f"t{i}", f, block, least, least + more) for i, (f, block, least, more) in enumerate(texts)]
    drawn = [PictureDemand(f"p{i}", f, a, 2 * 64, 2 * rows * 64, b) for i, (f, a, rows, b) in enumerate(pictures)]
    try:
        plan = planned(device, own, drawn)
    except ModelError:
        return
    caches = sum(plan.blocks[each.name] * each.block for each in own)
    forwards = [each.forward for each in own] + [each.forward(plan.pixels[each.name]) for each in drawn]
    assert caches + max(forwards, default=0) + max((each.beside for each in drawn), default=0) <= device.room + 1
    assert all(each.least <= plan.blocks[each.name] <= each.most for each in own)
    assert all(each.least <= plan.pixels[each.name] for each in drawn)


def test_a_forward_of_pictures_has_fewer_rows_the_larger_they_are_and_always_one() -> None:
    limits = Limits(32, 512, 64, pixels=6 * PIXELS)
    assert [limits.size(side, side) for side in (0, 128, 256, 512, 1024)] == [512, 24, 6, 1, 1]
    assert Limits(32, 512, 64).size(1024, 1024) == 512


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> Path:
    """A CPU that is measured as a GPU is: 8 MiB in all, of which 1 MiB is taken beside caches, and 1 MiB a forward."""
    if way == "kernel":
        pytest.skip("the CPU kernel is told its memory at start")
    text, image = tmp_path / "text", tmp_path / "image"
    write_decoder(text)
    write_flow_transformer(image)
    monkeypatch.setattr(hosting, "is_measured", lambda device: True)
    monkeypatch.setattr(hosting, "device_memory", lambda device, fraction: DeviceMemory("gpu", 8 << 20, 2 << 20, fraction))
    monkeypatch.setattr("service.workers.profiling.peak", lambda device, run: (run(), 1 << 20)[1])
    return tmp_path


def test_models_are_given_what_is_left_and_serve_with_it(measured: Path) -> None:
    models = [f"text={measured / 'text'}", f"image={measured / 'image'}"]
    engine = build_engine(Settings(models=models, threads=1, memory_fraction=1.0, row_budget=8, token_budget=64))
    lane, worker = engine.scheduler.lanes["text"], engine.models["text"].worker
    left = (8 << 20) - lane.pool.blocks * worker.cache.store[:, 0].nbytes
    assert (2 << 20) < left < (4 << 20) and worker.cache.store.shape[1] == lane.pool.blocks
    assert engine.scheduler.lanes["image"].limits.pixels == 2 * 8 * 8 * 8
    outputs = finish_all(engine, [text_request("t", 3, max_tokens=40), image_request("i", 1)])
    assert len(outputs.done) == 2
    given = build_engine(Settings(models=models, threads=1, kv_memory=1 << 20, row_budget=8))
    assert outputs.tokens == finish_all(given, [text_request("t", 3, max_tokens=40)]).tokens


def test_models_that_do_not_fit_are_refused_at_start(measured: Path) -> None:
    with pytest.raises(ModelError, match="do not fit on gpu"):
        build_engine(Settings(models=[f"text={measured / 'text'}"], threads=1, memory_fraction=0.1))
    with pytest.raises(ModelError, match="two models are called 'text'"):
        build_engine(Settings(models=[f"text={measured / 'text'}"] * 2, threads=1))
