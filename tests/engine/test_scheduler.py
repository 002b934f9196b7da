"""The scheduler alone: no network, no device, time and costs handed in."""

from __future__ import annotations

import msgspec
import torch

from service.engine.cost import ForwardCost
from service.engine.image_request import ImageRequest
from service.engine.lane import Lane, Limits, in_order
from service.engine.messages import Choice, ImageWork, ModelCard, Submit, TextWork
from service.engine.request import TextRequest
from service.engine.scheduler import Scheduler
from service.workers.block_pool import BlockPool
from service.workers.types import Encoded, Latent, TokenRead

TEXT = ModelCard("text", "text", "", [], [], "", 0, 300, 512)
IMAGE = ModelCard("image", "image", "", [], [], "", 0, 300, 512, guidance_input="jumps")


def scheduler(rows: int = 8, tokens: int = 64, running: int = 16, blocks: int = 64) -> Scheduler:
    limits = Limits(rows, tokens, running)
    return Scheduler({"text": Lane(BlockPool(blocks, 16), limits), "image": Lane(BlockPool(running), limits)})


def text(name: str, arrived: float = 0.0, prompt: int = 4, max_tokens: int = 8, priority: int = 0) -> TextRequest:
    work = TextWork(list(range(prompt)), max_tokens)
    return TextRequest.begin(Submit(name, "text", "autoregressive", {}, 0, work, arrived, priority), work, TEXT, 16)


def image(name: str, arrived: float = 0.0, procedure: str = "euler", size: int = 8, steps: int = 9) -> ImageRequest:
    work = ImageWork("3", size, size)
    return ImageRequest.begin(Submit(name, "image", procedure, {"steps": steps}, 0, work, arrived), work, IMAGE)


def encoded(request: ImageRequest) -> ImageRequest:
    request.encoded = request.encoded or Encoded(())
    return request


def test_requests_start_in_order_while_their_memory_is_free() -> None:
    s = scheduler(blocks=3)
    for i, size in enumerate((20, 28, 12)):
        s.add(text(f"r{i}", arrived=i, prompt=4, max_tokens=size))
    s.next_batch(10.0)
    # r1 needs two blocks and one is left; r2 would fit but must not overtake it for ever.
    assert [r.id for r in s.lanes["text"].running] == ["r0"]
    s.remove("r0")
    s.next_batch(11.0)
    assert [r.id for r in s.lanes["text"].running] == ["r1", "r2"]
    s.check_books()


def test_lower_priority_numbers_start_first() -> None:
    s = scheduler(running=1)
    for name, priority in (("late", 5), ("first", -1), ("middle", 0)):
        s.add(text(name, priority=priority))
    started = []
    while (batch := s.next_batch(0.0)) is not None:
        started.append(batch.items[0].request.id)
        s.remove(started[-1])
    assert started == ["first", "middle", "late"]


def test_device_time_is_shared_by_measured_seconds() -> None:
    s = scheduler()
    s.add(text("t", max_tokens=300))
    for i in range(4):
        s.add(image(f"i{i}"))
    seconds = {"text": 0.0, "image": 0.0}
    longest_wait, since_text = 0.0, 0.0
    for _ in range(400):
        batch = s.next_batch(0.0)
        assert batch is not None
        cost = 0.01 if batch.model == "text" else 0.1
        since_text = 0.0 if batch.model == "text" else since_text + cost
        longest_wait = max(longest_wait, since_text)
        seconds[batch.model] += cost
        s.ran(batch, cost)
    assert abs(seconds["text"] - seconds["image"]) <= 0.11
    assert longest_wait <= 0.1 + 1e-9  # a token stream waits for one image forward at most


def test_a_model_that_was_idle_has_not_saved_up_time() -> None:
    s = scheduler()
    s.add(image("i"))
    for _ in range(50):
        s.ran(s.next_batch(0.0), 0.1)
    s.add(text("t"))
    chosen = []
    for _ in range(10):
        batch = s.next_batch(0.0)
        chosen.append(batch.model)
        s.ran(batch, 0.1)
    assert 4 <= chosen.count("image") <= 6


def test_every_text_is_served_before_any_is_served_again() -> None:
    s = scheduler(rows=5)
    for i in range(10):
        s.add(text(f"t{i}"))
    served = [item.request.id for _ in range(4) for item in s.next_batch(0.0).items]
    assert sorted(served) == sorted(f"t{i}" for i in range(10) for _ in range(2))


def test_a_batch_says_how_full_it_is_and_whom_it_leaves_standing() -> None:
    s = scheduler(rows=8, running=6)
    for i in range(10):
        s.add(text(f"t{i}"))
    s.add(image("i"))
    batches = []
    for _ in range(2):
        batches.append(s.next_batch(0.0))
        s.ran(batches[-1], 1.0)
    image_batch, text_batch = sorted(batches, key=lambda batch: batch.model)
    assert (image_batch.fill, image_batch.held) == (1 / 8, {"text": 10, "image": 0})
    # Prefills of 4 tokens: six requests hold memory, four wait for it.
    assert (text_batch.fill, text_batch.held) == (6 / 8, {"text": 4, "image": 1})


def finished(s: Scheduler, seconds: float) -> list[str]:
    """Who ends, in that order, where a forward has room for one and an evaluation takes so many seconds."""
    for size in (1, 2, 3):
        s.lanes["image"].costs["refine", 8, 8].observe(size, seconds * size)
    ended: list[str] = []
    while (batch := s.next_batch(0.0)) is not None:
        (item,) = batch.items
        request = item.request
        assert isinstance(request, ImageRequest)
        request.at += 1
        if request.at == len(request.rows):
            s.remove(request.id)
            ended.append(request.id)
    return ended


def test_the_picture_that_has_least_left_is_finished_first() -> None:
    s = scheduler(rows=1)
    for name, steps in (("long", 9), ("short", 2), ("middle", 4), ("as long", 9)):
        s.add(encoded(image(name, steps=steps)))
    assert finished(s, 0.5) == ["short", "middle", "long", "as long"]


def test_a_picture_is_not_overtaken_by_what_comes_after_it_would_have_been_finished() -> None:
    s = scheduler(rows=1)
    s.add(encoded(image("long", arrived=0.0, steps=9)))  # 18 evaluations: 9 s
    s.add(encoded(image("soon", arrived=7.5, steps=1)))
    s.add(encoded(image("late", arrived=8.5, steps=1)))
    assert finished(s, 0.5) == ["soon", "long", "late"]


def test_pictures_move_by_turns_where_their_end_is_predicted() -> None:
    moved, waits = encoded(image("moved", steps=2)), encoded(image("waits", steps=9))
    moved.last_tick, waits.last_tick = 8, 7
    assert in_order([moved, waits], 0.5) == [moved, waits]
    waits.submit = msgspec.structs.replace(waits.submit, choices=[Choice("euler", {"steps": 9}, 9, 18)])
    assert in_order([moved, waits], 0.5) == [waits, moved]


def test_those_who_wait_for_a_forward_do_not_keep_others_from_being_encoded_and_decoded() -> None:
    s = scheduler(rows=1)
    for i in range(3):
        s.add(encoded(image(f"i{i}", steps=9)))
    s.add(image("new"))
    done = encoded(image("done"))
    done.latent = Latent(torch.zeros(3, 8, 8))
    s.add(done)
    assert [s.next_batch(0.0).bucket[0] for _ in range(6)] == ["encode", "decode", "refine"] * 2


def test_a_long_prefill_is_chunked_and_does_not_keep_decoding_from_its_tokens() -> None:
    s = scheduler(tokens=64, blocks=128)
    s.add(text("long", arrived=-1.0, prompt=400))
    for i in range(6):
        s.add(text(f"d{i}", prompt=1))
    for _ in range(4):
        batch = s.next_batch(0.0)
        sizes = {item.request.id: item.size for item in batch.items}
        assert all(sizes[f"d{i}"] == 1 for i in range(6))
        long = next(item for item in batch.items if item.request.id == "long")
        assert long.size == 58 and not long.whole
        long.request.fold(long.rows, False, TokenRead(), 0.0)


def test_a_batch_is_as_large_as_its_measured_cost_allows() -> None:
    s = scheduler(rows=32, running=32)
    for i in range(20):
        s.add(encoded(image(f"i{i}", procedure="flow_map")))
    for size in (1, 4, 16):
        s.lanes["image"].costs["refine", 8, 8].observe(size, 0.02 + 0.03 * size)
    assert s.next_batch(0.0).size == 6  # 0.02 + 0.03 n <= 0.2


def test_a_guided_row_counts_as_two_evaluations() -> None:
    assert image("a").rows[0].evaluations == 2
    assert image("b", procedure="flow_map").rows[0].evaluations == 1


def test_texts_go_before_latents_and_each_stage_and_size_by_itself() -> None:
    s = scheduler(rows=32, running=32)
    for i in range(4):
        s.add(encoded(image(f"small{i}")))
    for i in range(2):
        s.add(encoded(image(f"large{i}", size=16)))
    s.add(image("new"))
    seen = []
    for _ in range(4):
        batch = s.next_batch(0.0)
        seen.append((batch.bucket, len(batch.items)))
        encoded(next(item.request for item in batch.items))
    # The text first, since others wait for it; then whoever was served longest ago.
    assert seen == [(("encode", 0, 0), 1), (("refine", 8, 8), 5), (("refine", 16, 16), 2), (("refine", 8, 8), 5)]


def test_cost_is_a_fixed_part_and_a_slope() -> None:
    cost = ForwardCost()
    assert cost.affordable(1.0) is None
    for size in (2, 8, 8, 16, 4):
        cost.observe(size, 0.5 + 0.1 * size)
    assert cost.affordable(1.55) == 10
    assert cost.affordable(0.1) == 5  # 0.5 s are spent in any case; less work a forward would only waste them


def test_forwards_of_one_size_say_nothing_of_the_slope() -> None:
    cost = ForwardCost()
    for _ in range(20):
        cost.observe(1, 0.4)  # a slow start must not hold the batch at one row for ever
    assert cost.affordable(0.2) is None


def test_a_slow_first_forward_is_soon_forgotten() -> None:
    cost = ForwardCost()
    cost.observe(16, 2.0)
    for size in 6 * (1, 4):
        cost.observe(size, 0.01 + 0.001 * size)
    assert (cost.affordable(0.2) or 0) > 50 and (cost.seconds(4) or 0) < 0.02  # it would be 1 and 0.5 s


def test_ever_new_sizes_do_not_keep_an_old_one_waiting() -> None:
    s = scheduler(rows=4, running=4)
    s.add(encoded(image("old", steps=50)))
    moved = 0
    for i in range(40):
        name = f"new{i}"
        s.add(encoded(image(name, arrived=1.0 + i, size=16 + 8 * i, steps=1)))
        batch = s.next_batch(0.0)
        moved += batch.items[0].request.id == "old"
        for item in batch.items:
            if item.request.id != "old":
                s.remove(item.request.id)
    assert moved >= 8
    assert len(s.lanes["image"]._turns) < 10
