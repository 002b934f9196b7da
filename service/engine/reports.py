"""What the engine reports of its own work, for metrics and traces: msgspec structs, as all that it sends."""

from __future__ import annotations

import msgspec


class Tick(msgspec.Struct, frozen=True, tag="tick"):
    """One forward, for the metrics: rows and tokens it held, seconds it and the scheduler took. `prompt_tokens` were
    computed for the first time, `cached_tokens` of prompts found in the cache instead. `drafted_tokens` are guesses that were
    verified, `accepted_tokens` those of them that were right. `fill` is how much of the room in it was taken, 0 to 1, and `held`
    how many requests of each model it left standing."""

    model: str
    expand_moves: int
    refine_moves: int
    rows: int
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    revised_tokens: int
    refine_steps: int
    forward_seconds: float
    scheduler_seconds: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    encode_moves: int = 0
    decode_moves: int = 0
    score_moves: int = 0
    fill: float = 0.0
    held: dict[str, int] = {}


class Gauges(msgspec.Struct, frozen=True, tag="gauges"):
    """How things stand: per model (waiting, running), KV blocks per text model (used, cached, free), busy share."""

    waiting: dict[str, int]
    running: dict[str, int]
    kv_blocks: dict[str, tuple[int, int, int]]
    busy_ratio: float
    deadlines_missed: dict[str, int]
    preemptions: dict[str, int]
    dropped_messages: int


class StageTime(msgspec.Struct, frozen=True, array_like=True):
    """A stage of a request (`queue`; `prefill` and `decode` of a text; `encode`, `denoise` and `decode` of a picture), from one
    second of the monotonic clock to another. They follow one another without gaps."""

    name: str
    began: float
    ended: float
