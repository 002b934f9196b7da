"""Promise 1 with the embedded model: tokens do not depend on what the cache held, or on being set back, or on chunks."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest
import torch

from service.engine.assembly import build_engine
from service.engine.loop import Engine
from service.engine.messages import Sampling, Submit, TextWork
from service.settings import Settings
from tests.engine.driving import Outputs, engine_on, finish_all, image_request, text_request
from tests.engine.test_batch_invariant import logits_seen
from tests.engine.test_day_in_small import small_engine
from tests.few import few

TEXT = (
    b"First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\nFirst Citizen:\nYou are all "
    b"resolved rather to die than to famish?\n\nAll:\nResolved. resolved.\n\n"
)
ENDS = (b"First Citizen:\n", b"KING RICHARD II:\nMy lord, ", b"JULIET:\nO ", b"ROMEO:\n")
KINDS = {
    "greedy": ("autoregressive", {}, 0.0),
    "sampled": ("autoregressive", {}, 1.0),
    "blocks, greedy": ("block_diffusion", {"block_length": 16, "threshold": 0.9}, 0.0),
    "blocks, sampled": ("block_diffusion", {"rule": "confidence", "block_length": 8, "steps": 4}, 1.0),
    "blocks, by factor": ("block_diffusion", {"factor": 1.0}, 0.8),
    "blocks, by entropy": ("block_diffusion", {"rule": "entropy_bound", "entropy_bound": 0.5}, 0.8),
    "blocks, the least entropies": ("block_diffusion", {"rule": "entropy", "steps": 6}, 0.8),
    "blocks, by margin": ("block_diffusion", {"rule": "margin", "steps": 6}, 0.8),
    "blocks, masked again": ("block_diffusion", {"rule": "remask", "steps": 8, "eta": 0.2}, 0.8),
}


def shakespeare(**settings: object) -> Engine:
    return build_engine(Settings.model_validate({"models": ["shakespeare"], "threads": 1, "kv_memory": 8 << 20} | settings))


def requests(kind: str) -> list[Submit]:
    procedure, parameters, temperature = KINDS[kind]
    return [
        Submit(
            f"r{i}", "shakespeare", procedure, parameters, 100 + i,
            TextWork(list(TEXT + end), 56, Sampling(temperature=temperature), ignore_eos=True), 0.0,
        )
        for i, end in enumerate(ENDS)
    ]  # fmt: skip


def checked(engine: Engine, submits: list[Submit]) -> Outputs:
    outputs = Outputs()
    for submit in submits:
        outputs.take(engine.take(submit))
    while engine.has_work:
        outputs.take(engine.tick())
        engine.scheduler.check_books()
    return outputs


# A request starts with 11 to 14 blocks and ends with 15 or 16. Two are too many for 21, of which they share 10, and for 28.
TIGHT: dict[str, dict[str, object]] = {
    "in chunks": {"token_budget": 13, "kv_memory": 1_224_000},
    "without sharing": {"token_budget": 64, "prefix_cache": False, "kv_memory": 1_633_000},
    "plainly": {"kv_memory": 1_224_000},
}


@functools.cache
def unshared() -> Engine:
    return shakespeare(prefix_cache=False)


@functools.cache
def alone(kind: str) -> dict[str, list[int]]:
    tokens = {submit.id: finish_all(unshared(), [submit]).tokens[submit.id] for submit in requests(kind)}
    assert len({tuple(text) for text in tokens.values()}) > 1
    return tokens


@pytest.mark.parametrize("kind", few(KINDS, "sampled", "blocks, sampled", "blocks, masked again"))
def test_tokens_are_the_same_alone_together_and_cached(kind: str) -> None:
    submits, roomy = requests(kind), shakespeare()
    together = checked(roomy, submits)
    assert together.tokens == alone(kind)
    assert all(together.done[submit.id].usage.cached_tokens >= 160 for submit in submits[1:])
    again = checked(roomy, submits)
    assert again.tokens == alone(kind) and all(done.usage.cached_tokens >= 160 for done in again.done.values())
    assert roomy.gauges().preemptions == {"shakespeare": 0}


SET_BACK = (("sampled", "in chunks"), ("blocks, sampled", "without sharing"), ("blocks, masked again", "plainly"))


@pytest.mark.parametrize("kind,way", few(itertools.product(KINDS, TIGHT), *SET_BACK))
def test_tokens_are_the_same_chunked_and_set_back(kind: str, way: str) -> None:
    tight = shakespeare(**TIGHT[way])
    set_back = checked(tight, requests(kind))
    assert set_back.tokens == alone(kind)
    assert tight.gauges().preemptions["shakespeare"] > 0
    assert tight.gauges().kv_blocks["shakespeare"][0] == 0


def test_a_batch_invariant_server_draws_from_the_same_bits_cached_and_set_back(tmp_path: Path) -> None:
    def bits(engine: Engine, submits: list[Submit]) -> dict[int, list[torch.Tensor]]:
        seen = logits_seen(engine)
        checked(engine, submits)
        return {seed: [logits for logits in some if len(logits)] for seed, some in seen.items()}

    submits = []
    for i in range(6):
        work = TextWork(list(range(40, 100 + i)), 80, Sampling(temperature=i % 3 / 2), ignore_eos=True)
        submits.append(Submit(f"r{i}", "text", ("autoregressive", "block_diffusion")[i % 2], {}, i, work, 0.0))
    crowded = small_engine(tmp_path / "text")
    crowd = bits(crowded, submits)
    assert crowded.gauges().preemptions["text"] > 0
    for submit in submits:
        alone = bits(small_engine(tmp_path / "text", prefix_cache=False), [submit])[submit.seed]
        assert len(alone) == len(crowd[submit.seed])
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(alone, crowd[submit.seed], strict=True))


def test_a_row_that_is_not_finite_is_found_in_the_chunk_that_makes_it(tmp_path: Path) -> None:
    engine = engine_on(tmp_path, token_budget=16)
    worker = engine.models["text"].worker
    submit = text_request("r", 4, prompt_length=120)
    outputs = Outputs()
    outputs.take(engine.take(submit))
    for _ in range(3):
        outputs.take(engine.tick())
    request = engine.scheduler.requests["r"]
    assert request.state.cached < 60
    worker.cache.store[:, request.table.blocks[-1]] = float("nan")
    outputs.take(engine.tick())
    assert "not finite" in outputs.failed["r"].message
    assert torch.isfinite(worker.cache.store).all()
    assert engine.gauges().kv_blocks["text"][:2] == (0, 0)  # nothing of it is left to be shared


def test_pictures_are_not_cached_and_keep_their_slots(tmp_path: Path) -> None:
    engine = engine_on(tmp_path, max_running=2)
    outputs = checked(engine, [image_request(f"i{i}", 3, steps=4) for i in range(5)])
    assert len({done.rgb for done in outputs.done.values()}) == 1
    pool = engine.scheduler.lanes["image"].pool
    assert (pool.used, pool.cached, pool.free) == (0, 0, 2)
