"""Generation with diffusion language models, against their published procedures written out over an independent network."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from service.engine.assembly import build_engine
from service.engine.loop import Engine
from service.engine.messages import Revision, Sampling, Submit, TextWork
from service.settings import Settings
from tests.diffusion_checkpoints import LAYOUTS, MASK, logits_of, write_layout
from tests.engine.driving import Outputs, finish_all, finish_all_set_back
from tests.few import few
from tests.http.test_checkpoints import write_tokenizer

pytest.importorskip("transformers")

KNOWN = 290
"""Tokens of the tokeniser; the others are never drawn."""
Canvas = list[int | None]


@functools.cache
def reference(folder: Path, name: str) -> Any:
    network = write_layout(folder, name)
    write_tokenizer(folder)
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diffusion")


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, KNOWN, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def engine_of(folder: Path, kv_memory: str = "1MiB", **settings: Any) -> Engine:
    """Its clock goes on by a second each time that it is read, so that every canvas is shown."""
    clock = itertools.count()
    models = [f"m={folder},kv_memory={kv_memory}"]
    return build_engine(Settings(models=models, threads=1, **({"kv_block": 4} | settings)), lambda: float(next(clock)))


def submit(name: str, prompt: list[int], max_tokens: int, procedure: str = "block_diffusion", **options: Any) -> Submit:
    parameters, sampling = options.pop("parameters", {}), Sampling(temperature=options.pop("temperature", 0.0))
    work = TextWork(prompt, max_tokens, sampling, ignore_eos=True, revisions=options.pop("revisions", False))
    return Submit(name, "m", procedure, parameters, options.pop("seed", 0), work, 0.0)


def generated(engine: Engine, request: Submit) -> tuple[list[int], list[Canvas]]:
    """The tokens, and every canvas on the way to them."""
    outputs, canvases = Outputs(), []
    outputs.take(engine.take(request))
    while engine.has_work:
        events = engine.tick()
        outputs.take(events)
        canvases += [list(event.token_ids) for event in events if isinstance(event, Revision)]
    assert not outputs.failed
    return outputs.tokens[request.id], canvases


def surest(logits: Tensor) -> tuple[list[int], list[float]]:
    """The likeliest token of each row that may be drawn, and its probability."""
    logits = logits.clone()
    logits[:, KNOWN:] = float("-inf")
    confidence, tokens = logits.softmax(-1).max(-1)
    return tokens.tolist(), confidence.tolist()


def published(
    network: Any, prompt: list[int], count: int, length: int, steps: int, shift: bool = False, part: int | None = None
) -> Iterator[list[int]]:
    """The text after each forward that sets something: block by block and, in it, part by part, from left to right, as many
    of the surest tokens as the steps left for the block demand. With `shift` position i is read at i - 1, which for a
    block's first token is in the block before it."""
    text = list(prompt)
    while len(text) < len(prompt) + count:
        stop = (len(text) // length + 1) * length
        if shift and len(text) % length == 0:
            text += surest(logits_of(network, text, length)[-1:])[0]
            yield text
        text += [MASK] * (stop - len(text))
        for left in range(steps, 0, -1):
            masked = [i for i in range(stop - length, stop) if text[i] == MASK]
            if not masked:
                break
            size = part or length
            parted = [i for i in masked if i // size == masked[0] // size]
            tokens, confidence = surest(logits_of(network, text, length)[[i - shift for i in parted]])
            order = sorted(range(len(parted)), key=lambda k: -confidence[k])
            for k in order[: -(-len(masked) // left)]:
                text[parted[k]] = tokens[k]
            yield text


def canvases_of(texts: Iterator[list[int]], length: int, prompt: int, limit: int) -> Iterator[Canvas]:
    """What a client sees of them: the block under work from its first generated token on, if anything in it is masked."""
    for text in texts:
        text = text + [MASK] * (-len(text) % length)
        if MASK in text:
            yield [None if token == MASK else token for token in text[max(prompt, len(text) - length) : limit]]


@pytest.mark.parametrize("prompt,count,steps", [(13, 20, 4), (16, 12, 2), (3, 9, 4), (8, 8, 3)])
def test_sdar_generates_what_its_published_procedure_does_step_by_step(
    folder: Path, prompt: int, count: int, steps: int
) -> None:
    network, text = reference(folder / "sdar", "sdar"), prompt_of(prompt)
    request = submit("r", text, count, parameters={"rule": "confidence", "steps": steps, "block_length": 4}, revisions=True)
    tokens, canvases = generated(engine_of(folder / "sdar"), request)
    expected = [list(step) for step in published(network, text, count, 4, steps)]
    assert tokens == expected[-1][prompt : prompt + count]
    assert canvases == list(canvases_of(iter(expected), 4, prompt, prompt + count))


@pytest.mark.parametrize("prompt,count,part", [(13, 20, None), (16, 13, 2), (3, 21, 4), (8, 8, 8)])
def test_fast_dllm_generates_what_its_published_procedure_does_step_by_step(
    folder: Path, prompt: int, count: int, part: int | None
) -> None:
    network, text = reference(folder / "fast_dllm", "fast_dllm"), prompt_of(prompt)
    parameters = {"rule": "confidence", "steps": 8, "sub_block_length": part, "block_length": 8}
    request = submit("r", text, count, parameters=parameters, revisions=True)
    tokens, canvases = generated(engine_of(folder / "fast_dllm"), request)
    expected = [list(step) for step in published(network, text, count, 8, 8, True, part)]
    assert tokens == expected[-1][prompt : prompt + count]
    assert canvases == list(canvases_of(iter(expected), 8, prompt, prompt + count))


def a_day(length: int) -> list[Submit]:
    """Requests that begin alike and part inside diffusion blocks and at their borders, greedy and not."""
    stem, submits = prompt_of(48), []
    for i, same in enumerate([0, 3, 8, 12, 13, 16, 20, 30, 32, 47, 48, 48]):
        prompt = stem[:same] + prompt_of(1 + i, i)
        parameters = {"block_length": length, "threshold": 0.4}
        submits.append(submit(f"r{i}", prompt, 15 + i, parameters=parameters, temperature=0.9 * (i % 2), seed=i))
    return submits


@functools.cache
def alone_through(place: Path, length: int) -> dict[str, list[int]]:
    engine = engine_of(place, prefix_cache=False)
    return {request.id: finish_all(engine, [request]).tokens[request.id] for request in a_day(length)}


ROOMY, TIGHT = 1200, 112
BLOCKED = [("sdar", 16), ("sdar", 3), ("sdar-tied-blocks-of-8", 4), ("fast_dllm", 12), ("llada2", 4)]


@pytest.mark.parametrize(
    "name,kv_block,positions",
    few(
        [(*each, positions) for each in BLOCKED for positions in (ROOMY, TIGHT)],
        ("sdar", 3, TIGHT), ("fast_dllm", 12, ROOMY),
    ),
)  # fmt: skip
def test_tokens_depend_neither_on_the_batch_nor_on_shared_blocks_nor_on_memory(
    folder: Path, name: str, kv_block: int, positions: int
) -> None:
    reference(folder / name, name)
    length = LAYOUTS[name].config.get("block_size", 8)
    bytes_each = 3 * 2 * 2 * (12 if name == "fast_dllm" else 16) * 4
    alone = alone_through(folder / name, length)
    engine = engine_of(folder / name, str(positions * bytes_each), kv_block=kv_block, token_budget=40)
    together = finish_all(engine, a_day(length))
    assert together.tokens == alone
    again = finish_all(engine, a_day(length))
    assert again.tokens == alone
    lane = engine.scheduler.lanes["m"]
    if positions == ROOMY:
        assert sum(done.usage.cached_tokens or 0 for done in again.done.values()) > 100, "nothing was shared"
    else:
        assert lane.preemptions > 0, "there was memory for all"


def whole_sequence(
    network: Any, prompt: list[int], count: int, length: int, steps: int, shift: bool, cache: str
) -> Iterator[list[int]]:
    """The text after each forward of LLaDA's semi-autoregressive procedure, with Fast-dLLM's caches where asked for."""
    from transformers import DynamicCache

    text, limit = prompt + [MASK] * count, len(prompt) + count
    for begin in range(len(prompt), limit, length):
        stop, past = min(begin + length, limit), None
        for left in range(steps, 0, -1):
            masked = [i for i in range(begin, stop) if text[i] == MASK]
            if not masked:
                break
            start, end = 0, limit
            if past is not None and cache != "none":
                start, end = begin - shift, stop if cache == "dual" else limit
            seen = DynamicCache()
            if past is not None and start:
                for layer in range(3):
                    keys, values = past.layers[layer].keys, past.layers[layer].values
                    kept = [*range(start), *range(end, limit)]
                    seen.update(keys[:, :, kept], values[:, :, kept], layer)
            size = end - start
            with torch.no_grad():
                out = network(
                    torch.tensor([text[start:end]]), past_key_values=seen, use_cache=True,
                    position_ids=torch.arange(start, end)[None],
                    attention_mask=torch.zeros(1, 1, size, size + (len(kept) if past is not None and start else 0)),
                )  # fmt: skip
            if past is None:
                past = out.past_key_values
            tokens, confidence = surest(out.logits[0][[i - shift - start for i in masked]])
            order = sorted(range(len(masked)), key=lambda k: -confidence[k])
            for k in order[: -(-len(masked) // left)]:
                text[masked[k]] = tokens[k]
            yield text


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize(
    "name,prompt,count,length,steps", [("llada", 11, 22, 8, 4), ("dream", 9, 24, 8, 3), ("dream", 5, 7, 16, 7)]
)
def test_whole_sequences_are_set_as_the_published_procedure_does_step_by_step(
    folder: Path, name: str, prompt: int, count: int, length: int, steps: int, cache: str
) -> None:
    network, text = reference(folder / name, name), prompt_of(prompt)
    parameters = {"rule": "confidence", "steps": steps, "block_length": length, "cache": cache}
    request = submit("r", text, count, "masked_diffusion", parameters=parameters, revisions=True)
    tokens, canvases = generated(engine_of(folder / name), request)
    expected = [list(step) for step in whole_sequence(network, text, count, length, steps, name == "dream", cache)]
    assert tokens == expected[-1][prompt:]
    begins = [prompt + (step.index(MASK) - prompt) // length * length for step in expected if MASK in step]
    unfinished = zip([step for step in expected if MASK in step], begins, strict=True)
    shown = [[None if token == MASK else token for token in step[i : min(i + length, prompt + count)]] for step, i in unfinished]
    assert canvases == [canvas for canvas in shown if canvas != [None] * len(canvas)]


def test_an_approximate_cache_is_one(folder: Path) -> None:
    reference(folder / "llada", "llada")
    texts = [
        generated(
            engine_of(folder / "llada"),
            submit("r", prompt_of(20), 64, "masked_diffusion", parameters={"cache": cache, "rule": "confidence", "steps": 16}),
        )[0]
        for cache in ("none", "prefix", "dual")
    ]
    assert texts[0] != texts[1] and texts[1] != texts[2]


def a_day_of_wholes() -> list[Submit]:
    stem = prompt_of(30)
    return [
        submit(
            f"r{i}", stem[: 20 + i], 12 + 5 * i, "masked_diffusion", temperature=0.9 * (i % 2), seed=i,
            parameters={"cache": ("none", "prefix", "dual")[i % 3], "threshold": 0.3},
        )
        for i in range(9)
    ]  # fmt: skip


@functools.cache
def wholes_alone(place: Path) -> dict[str, list[int]]:
    engine = engine_of(place)
    return {request.id: finish_all(engine, [request]).tokens[request.id] for request in a_day_of_wholes()}


@pytest.mark.parametrize(
    "name,positions,set_back",
    few(
        [(name, *how) for name in ("llada", "dream") for how in ((ROOMY, False), (TIGHT, False), (ROOMY, True))],
        ("dream", ROOMY, False), ("llada", TIGHT, False), ("llada", ROOMY, True),
    ),
)  # fmt: skip
def test_tokens_of_a_whole_sequence_depend_neither_on_the_batch_nor_on_memory(
    folder: Path, name: str, positions: int, set_back: bool
) -> None:
    reference(folder / name, name)
    day = a_day_of_wholes()
    alone = wholes_alone(folder / name)
    bytes_each = 3 * 2 * LAYOUTS[name].config.get("num_key_value_heads", 4) * 12 * 4
    engine = engine_of(folder / name, str(positions * bytes_each), token_budget=40)
    lane = engine.scheduler.lanes["m"]
    outputs = finish_all_set_back(engine, day, lane) if set_back else finish_all(engine, day)
    assert outputs.tokens == alone
    assert sum(done.usage.cached_tokens or 0 for done in outputs.done.values()) == 0
    assert set_back or lane.preemptions == 0, "all memory is claimed at the start"


def test_a_canvas_beyond_the_token_budget_takes_turns_with_short_ones(folder: Path) -> None:
    reference(folder / "llada", "llada")
    engine, outputs = engine_of(folder / "llada", token_budget=64), Outputs()
    parameters = {"rule": "confidence", "steps": 1, "block_length": 8}
    outputs.take(engine.take(submit("long", prompt_of(80), 32, "masked_diffusion", parameters=parameters)))
    for number in range(400):
        if "long" in outputs.done:
            break
        outputs.take(engine.take(submit(f"s{number}", [5], 3, "masked_diffusion", parameters=parameters)))
        outputs.take(engine.tick())
    assert "long" in outputs.done and len(outputs.done) > 2


class BlockCausal(torch.nn.Module):
    """The reference network as diffusers' pipeline calls it, in blocks of 8."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.config, self.device, self.dtype = network.config, network.device, network.dtype

    def forward(self, tokens: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Any:
        assert bool(attention_mask.all()) and position_ids[0].tolist() == list(range(tokens.shape[1]))
        logits = logits_of(self.network, tokens[0].tolist(), 8)
        logits[:, KNOWN:] = float("-inf")
        return SimpleNamespace(logits=logits[None])


@pytest.mark.parametrize("prompt,count,steps", [(16, 24, 4), (8, 16, 3), (11, 21, 8)])
def test_llada2_generates_what_the_pipeline_of_diffusers_does_step_by_step(
    folder: Path, prompt: int, count: int, steps: int
) -> None:
    diffusers = pytest.importorskip("diffusers")
    network, text, seen = reference(folder / "llada2", "llada2"), prompt_of(prompt), []

    def step(pipeline: Any, number: int, timestep: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["block_x"][0].tolist())
        return {}

    pipeline = diffusers.LLaDA2Pipeline(BlockCausal(network), diffusers.BlockRefinementScheduler(), None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        input_ids=torch.tensor([text]), gen_length=count, block_length=8, num_inference_steps=steps, threshold=2.0,
        editing_threshold=None, eos_early_stop=False, mask_token_id=MASK, output_type="seq", callback_on_step_end=step,
    )  # fmt: skip
    request = submit("r", text, count, parameters={"rule": "confidence", "steps": steps, "block_length": 8}, revisions=True)
    tokens, canvases = generated(engine_of(folder / "llada2"), request)
    assert tokens == seen[-1][prompt:]
    assert canvases == list(canvases_of(iter(seen), 8, prompt, prompt + count))


RULES: list[dict[str, Any]] = [
    {"rule": "margin", "steps": 3}, {"rule": "entropy", "steps": 4}, {"rule": "entropy_bound", "entropy_bound": 0.5},
    {"rule": "remask", "steps": 6}, {"rule": "threshold", "factor": 1.0}, {"rule": "threshold", "threshold": 0.5, "steps": 4},
]  # fmt: skip


@pytest.mark.parametrize("name", few(["sdar-tied-blocks-of-8", "fast_dllm", "llada", "dream"], "sdar-tied-blocks-of-8", "dream"))
def test_every_rule_fills_what_was_asked_for_by_itself_and_in_a_batch_that_is_set_back(folder: Path, name: str) -> None:
    reference(folder / name, name)
    whole = LAYOUTS[name].config["model_type"] in ("llada", "Dream")
    day = [
        submit(
            f"{i}{cache}", prompt_of(9 + i, i), 19, "masked_diffusion" if whole else "block_diffusion", temperature=0.8, seed=i,
            parameters={**rule, "block_length": 8, **({"cache": cache} if whole else {})},
        )
        for i, rule in enumerate(RULES)
        for cache in (("none", "prefix", "dual") if whole else ("none",))
    ]  # fmt: skip
    single = engine_of(folder / name, prefix_cache=False)
    alone = {request.id: finish_all(single, [request]).tokens[request.id] for request in day}
    assert all(len(tokens) == 19 and max(tokens) < KNOWN for tokens in alone.values())
    engine, outputs, ticks = engine_of(folder / name, "2MiB"), Outputs(), 0
    for request in day:
        outputs.take(engine.take(request))
    while engine.has_work:
        outputs.take(engine.tick())
        ticks += 1
        running = engine.scheduler.lanes["m"].running
        if running and ticks % 3 == 0 and ticks < 300:
            engine.scheduler.lanes["m"]._set_back(running[ticks % len(running)])
    assert outputs.tokens == alone
