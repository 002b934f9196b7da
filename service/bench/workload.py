"""What a benchmark asks for: a reproducible list of token and image requests with their arrival times."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["text", "image"]

PROMPTS = (
    "ROMEO:\n",
    "To be, or not to be",
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\n",
    "KING RICHARD II:\nWhat must the king do now?",
    "O, she doth teach the torches to burn bright!",
    "Now is the winter of our discontent\nMade glorious summer by this sun of York;\n",
)
SIZES = ("large", "small")
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
RELATIONS = ("above", "below", "left of", "right of")


@dataclass(frozen=True)
class Mix:
    """What requests are drawn from. `text_share` is the probability that a request is for tokens."""

    text_share: float
    text_model: str | None
    image_model: str | None
    text_procedures: tuple[str, ...]
    max_tokens: tuple[int, ...]
    samplers: tuple[str, ...]
    steps: tuple[int, ...]
    jumps: tuple[int, ...]
    guidance: tuple[float, ...]
    preview_every: int = 0


@dataclass(frozen=True)
class Job:
    """One request: when it arrives (seconds after the start), and the body for `POST /v1/generate`."""

    index: int
    kind: Kind
    arrival: float
    body: dict[str, Any]


def make_workload(mix: Mix, requests: int, seed: int, rate: float | None) -> list[Job]:
    """`requests` jobs, the same for the same seed. With `rate`, arrivals are a Poisson process (requests a second).

    Raises ValueError when the mix needs a model that is not there.
    """
    if mix.text_share > 0 and mix.text_model is None:
        raise ValueError("no text model is served: use --text 0 or name one with --text-model")
    if mix.text_share < 1 and mix.image_model is None:
        raise ValueError("no image model is served: use --text 1 or name one with --image-model")
    # Arrivals have their own stream, so that a change of the rate leaves the requests as they are.
    draw, clock = random.Random(f"{seed}/requests"), random.Random(f"{seed}/arrivals")
    jobs, arrival = [], 0.0
    for index in range(requests):
        kind: Kind = "text" if draw.random() < mix.text_share else "image"
        body = _text_body(mix, draw) if kind == "text" else _image_body(mix, draw)
        jobs.append(Job(index, kind, arrival, body | {"seed": draw.randrange(2**31), "stream": True}))
        if rate is not None:
            arrival += clock.expovariate(rate)
    return jobs


def _text_body(mix: Mix, draw: random.Random) -> dict[str, Any]:
    return {
        "model": mix.text_model,
        "prompt": draw.choice(PROMPTS),
        "procedure": {"name": draw.choice(mix.text_procedures)},
        "max_tokens": draw.choice(mix.max_tokens),
    }


def _image_body(mix: Mix, draw: random.Random) -> dict[str, Any]:
    sampler = draw.choice(mix.samplers)
    # A flow map jumps; a few evaluations are its point.
    steps = draw.choice(mix.jumps if sampler in ("flow_map", "consistency") else mix.steps)
    body: dict[str, Any] = {
        "model": mix.image_model,
        "prompt": _caption(draw),
        "procedure": {"name": sampler, "steps": steps, "guidance": draw.choice(mix.guidance)},
    }
    return body | ({"preview_every": mix.preview_every} if mix.preview_every else {})


def _caption(draw: random.Random) -> str:
    things = [f"a {draw.choice(SIZES)} {draw.choice(COLOURS)} {draw.choice(SHAPES)}" for _ in range(2)]
    return f" {draw.choice(RELATIONS)} ".join(things)
