"""Drives an Engine without a process, with a clock that the test turns."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.engine.assembly import build_engine
from service.engine.lane import Lane
from service.engine.loop import Engine
from service.engine.messages import Done, Failed, FromEngine, ImageWork, Sampling, Scores, Submit, TextWork, Tick, Tokens
from service.settings import Settings
from tests.checkpoints import write_decoder, write_flow_transformer

UNLIMITED = 1e9  # seconds of a forward: with a limit a busy machine leaves no room for guesses
PENALISED = {"logit_bias": {65: 4.0, 66: -100.0}, "frequency_penalty": 0.8, "repetition_penalty": 1.2}


def engine_on(folder: Path, **settings: Any) -> Engine:
    """An engine with a tiny text model `text` and a tiny image model `image`."""
    text, image = folder / "text", folder / "image"
    if not text.exists():
        write_decoder(text)
        write_flow_transformer(image)
    defaults = {"models": [f"text={text}", f"image={image}"], "threads": 1, "kv_memory": 1 << 20}
    return build_engine(Settings(**(defaults | settings)))


def unhurried(engine: Engine) -> Engine:
    """The engine with forwards that may take as long as they like: how much goes into one does not depend on the machine."""
    for lane in engine.scheduler.lanes.values():
        lane.limits = replace(lane.limits, seconds=UNLIMITED)
    return engine


def text_request(name: str, seed: int, procedure: str = "autoregressive", **options: Any) -> Submit:
    prompt = [random.Random(seed).randrange(32, 127) for _ in range(options.pop("prompt_length", 5 + seed % 40))]
    parameters = options.pop("parameters", {})
    sampling = Sampling(**options.pop("sampling", {"temperature": 0.0 if seed % 3 == 0 else 1.0, "top_p": 0.95}))
    work = TextWork(prompt, options.pop("max_tokens", 20 + seed % 13), sampling, ignore_eos=True, **options)
    return Submit(name, "text", procedure, parameters, seed, work, 0.0)


def image_request(
    name: str, seed: int, procedure: str = "euler", steps: int = 5, guidance: float = 2.0, **parameters: Any
) -> Submit:
    work = ImageWork(f"{chr(35 + seed % 25)}12", 8, 8)
    return Submit(name, "image", procedure, {"steps": steps, "guidance": guidance} | parameters, seed, work, 0.0)


def one_of_every_kind(count: int) -> list[Submit]:
    """`count` requests, text and image, of every procedure, with different lengths, steps and guidance."""
    makers = [
        lambda n, i: text_request(n, i),
        lambda n, i: text_request(n, i, "block_diffusion", parameters={"block_length": 8, "threshold": 0.3}),
        lambda n, i: text_request(n, i, "block_diffusion", parameters={"rule": "confidence", "steps": 3}),
        lambda n, i: text_request(n, i, sampling={"top_k": 20, "repetition_penalty": 1.3}),
        lambda n, i: image_request(n, i, "euler", 4 + i % 5),
        lambda n, i: image_request(n, i, "heun", 3 + i % 3, 1.0),
        lambda n, i: image_request(n, i, "dpmpp_2m", 4 + i % 4, 4.0),
        lambda n, i: image_request(n, i, "ddim", 6),
        lambda n, i: image_request(n, i, "flow_map", 1 + i % 4),
        lambda n, i: image_request(n, i, "consistency", 3),
        lambda n, i: image_request(n, i, "unipc", 5 + i % 3, schedule="karras"),
        lambda n, i: image_request(n, i, "euler_ancestral", 4),
        lambda n, i: image_request(n, i, "restart", 2, restarts=2),
        lambda n, i: image_request(n, i, "euler", 4, churn=1.0, guidance_interval=[0.2, 0.9], guidance_rescale=0.5),
        lambda n, i: text_request(n, i, "block_diffusion", parameters={"factor": 1.0, "block_length": 4}),
        lambda n, i: text_request(n, i, "block_diffusion", parameters={"rule": "margin", "steps": 4}),
        lambda n, i: text_request(n, i, "block_diffusion", parameters={"rule": "entropy", "steps": 5}, sampling=PENALISED),
        lambda n, i: text_request(n, i, "block_diffusion", parameters={"rule": "entropy_bound", "entropy_bound": 2.0}),
        lambda n, i: text_request(n, i, "block_diffusion", parameters={"rule": "remask", "steps": 6, "eta": 0.3}),
        lambda n, i: text_request(n, i, "block_diffusion", parameters={"rule": "confidence", "sub_block_length": 4}),
    ]
    return [makers[i % len(makers)](f"r{i}", i) for i in range(count)]


class Outputs:
    """What came out of an engine, by request."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.scores: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.done: dict[str, Done] = {}
        self.failed: dict[str, Failed] = {}
        self.ticks: list[Tick] = []

    def take(self, events: list[FromEngine]) -> None:
        for event in events:
            match event:
                case Tokens():
                    self.tokens[event.id] += event.token_ids
                case Scores():
                    owns = [logprob.own for logprob in event.logprobs]
                    self.scores[event.id] += zip(event.token_ids, owns, strict=True)
                case Done():
                    assert event.id not in self.done and event.id not in self.failed
                    self.done[event.id] = event
                case Failed():
                    assert event.id not in self.done and event.id not in self.failed
                    self.failed[event.id] = event
                case Tick():
                    self.ticks.append(event)


def finish_all_set_back(engine: Engine, submits: list[Submit], lane: Lane, until: int = 100_000) -> Outputs:
    """As `finish_all`, but in every third of the first `until` ticks a running request gives its memory back."""
    outputs, ticks = Outputs(), 0
    for submit in submits:
        outputs.take(engine.take(submit))
    while engine.has_work:
        outputs.take(engine.tick())
        ticks += 1
        if lane.running and ticks % 3 == 0 and ticks < until:
            lane._set_back(lane.running[ticks % len(lane.running)])
    return outputs


def finish_all(engine: Engine, submits: list[Submit], outputs: Outputs | None = None) -> Outputs:
    """Submit everything at once and run until nothing is left."""
    outputs = outputs or Outputs()
    for submit in submits:
        outputs.take(engine.take(submit))
    for _ in range(100_000):
        if not engine.has_work:
            break
        outputs.take(engine.tick())
    assert not engine.has_work
    engine.tick()
    return outputs
