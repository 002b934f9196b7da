"""Whole models on a GPU, with random weights in the published formats, through Stride's own engine and through its peers.

Texts: what a decode step takes at several batch sizes against its memory floor (weights, keys and values read once at the
copy bandwidth measured in the same run), all tokens a second against transformers' continuous batching and a compiled loop
over its static cache, what the host does between forwards, and how long the GPU has nothing to do. Pictures: requests with
mixed samplers, together in the engine, and in diffusers a batch a sampler, which is the most that it can batch.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from service.engine.assembly import build_engine
from service.engine.loop import Engine
from service.engine.messages import Done, Failed, Sampling, Submit, TextWork, Tick, Tokens
from service.settings import Settings
from tests.benchmarks.checkpoints import Shape, write_checkpoint
from tests.benchmarks.contestant import Engine as Peer
from tests.benchmarks.contestant import Prompt, Unavailable, told
from tests.benchmarks.engines import StaticLoop, TransformersContinuous
from tests.benchmarks.gpu_clock import Ceilings, idle_share
from tests.benchmarks.gpu_pictures import PICTURES, picture_report

TEXT_SIZES = {
    "1B": Shape(
        vocab=128_256, width=2048, layers=16, heads=32, kv_heads=8, head_dim=64, intermediate=8192, rope_theta=5e5, context=4096
    ),
    "8B": Shape(
        vocab=151_936, width=4096, layers=36, heads=32, kv_heads=8, head_dim=128, intermediate=12_288, rope_theta=1e6,
        context=4096,
    ),
}  # fmt: skip
"""Llama 3.2 1B's and Qwen3 8B's, with tied embeddings."""
TOY = Shape(vocab=512, width=64, layers=2, heads=4, kv_heads=2, head_dim=32, intermediate=96)
BATCHES = (1, 16, 64, 256)
HEADER = (
    "| model | texts | step ms | floor ms | of the floor | host ms a tick | GPU idle | tokens/s | continuous batching tokens/s "
    "| times | compiled static cache tokens/s | times |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Load:
    prompt: int
    tokens: int


@dataclass(frozen=True)
class Steps:
    """Of a batch in the engine: all seconds of the run, the median of those between two decode forwards of the whole batch, and
    of what the host spent outside the forward in each."""

    whole: float
    step: float
    host: float


def floor_seconds(shape: Shape, batch: int, context: int, bandwidth: float) -> float:
    """What a decode step takes at least: all matrices, and the keys and values of the texts, read once in bfloat16."""
    keys_and_values = batch * context * shape.layers * 2 * shape.kv_heads * shape.head_dim
    return 2 * (shape.matrix_weights() + keys_and_values) / bandwidth


class Driven:
    """Stride's engine in this process, as its own process drives it."""

    def __init__(self, folder: Path, shape: Shape, device: str, batch: int, load: Load) -> None:
        positions = batch * (load.prompt + load.tokens + 32) + 64
        memory = positions * shape.layers * 2 * shape.kv_heads * shape.head_dim * 2
        self._engine: Engine = build_engine(
            Settings(
                models=[f"text={folder},dtype=bfloat16"], device=device, kv_memory=max(memory * 5 // 4, 1 << 20),
                max_running=batch, row_budget=batch, token_budget=max(2048, batch), prefix_cache=False,
            )
        )  # fmt: skip
        self._batch, self._asked = batch, 0

    def run(self, prompts: Sequence[Prompt], count: int) -> Steps:
        """Greedy continuations, all at once. Raises Unavailable when a request fails."""
        began = time.perf_counter()
        for prompt in prompts:
            self._asked += 1
            work = TextWork(list(prompt.tokens), count, Sampling(temperature=0.0), ignore_eos=True)
            name = f"r{self._asked}"
            for event in self._engine.take(Submit(name, "text", "autoregressive", {}, self._asked, work, 0.0)):
                raise Unavailable(str(event))
        decodes: list[tuple[float, float]] = []
        made = 0
        while self._engine.has_work:
            for event in self._engine.tick():
                match event:
                    case Failed():
                        raise Unavailable(event.message)
                    case Tokens():
                        made += len(event.token_ids)
                    case Tick() if event.rows == len(prompts) and not event.prompt_tokens:
                        decodes.append((time.perf_counter(), event.scheduler_seconds))
                    case Done() | _:
                        pass
        assert made == len(prompts) * count, f"{made} tokens of {len(prompts)} x {count}"
        whole = time.perf_counter() - began
        between = [after[0] - before[0] for before, after in pairwise(decodes)]
        return Steps(whole, statistics.median(between), statistics.median(host for _, host in decodes))


def prompts_of(shape: Shape, count: int, length: int, seed: int) -> list[Prompt]:
    rng = random.Random(seed)
    return [Prompt("", tuple(rng.randrange(shape.vocab - 2) for _ in range(length))) for _ in range(count)]


def text_row(
    name: str, shape: Shape, folder: Path, device: torch.device, batch: int, load: Load, ceilings: Ceilings, small: bool
) -> Iterator[str]:
    """The table's row, then a line for each peer that did not run."""
    made = batch * load.tokens
    ask = lambda seed: prompts_of(shape, batch, load.prompt, seed)  # noqa: E731
    driven = Driven(folder, shape, str(device), batch, load)
    driven.run(ask(0), load.tokens)
    steps = driven.run(ask(1), load.tokens)
    idle = idle_share(partial(driven.run, ask(2), load.tokens), device)
    del driven
    free(device)
    floor = floor_seconds(shape, batch, load.prompt + load.tokens // 2, ceilings.copy)
    cells = [name, str(batch), f"{steps.step * 1e3:.2f}", f"{floor * 1e3:.2f}", f"{floor / steps.step:.2f}"]
    cells += [f"{steps.host * 1e3:.2f}", idle, f"{made / steps.whole:.0f}"]
    failed = []
    length, threads = load.prompt + load.tokens, torch.get_num_threads()
    makers: dict[str, Callable[[], Peer]] = {
        "continuous batching": lambda: TransformersContinuous(folder, threads, batch, length, str(device)),
        "static cache": lambda: StaticLoop(folder, threads, batch, length, str(device), compiled=not small),
    }
    for peer, make in makers.items():
        try:
            took = peer_seconds(make, [ask(0), ask(1)], load.tokens)
            cells += [f"{made / took:.0f}", f"{took / steps.whole:.2f}"]
        except Exception as error:  # whatever a peer fails with is said beside the table, and the others are measured
            cells += ["", ""]
            failed.append(f"- {name}, {batch} texts, {peer} did not run: {told(error)}")
        free(device)
    yield "| " + " | ".join(cells) + " |"
    yield from failed


def peer_seconds(make: Callable[[], Peer], asked: Sequence[list[Prompt]], count: int) -> float:
    """Seconds of the last of these turns; those before it warm up."""
    peer = make()
    for prompts in asked:
        streams = peer.generate(prompts, count)
    assert all(stream.count == count for stream in streams)
    return max(stream.last for stream in streams)


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch._dynamo.reset()
        torch.cuda.empty_cache()


def model_report(
    device: torch.device, small: bool, folder: Path, sizes: Sequence[str] | None, batches: Sequence[int] | None
) -> Iterator[str]:
    """Lines of markdown, as they are measured. Raises KeyError for a size that is none."""
    texts = {"toy": TOY} if small else TEXT_SIZES
    chosen = list(sizes) if sizes is not None else [*texts, *PICTURES[small]]
    load = Load(8, 6) if small else Load(128, 128)
    ceilings = Ceilings.measured(device, small)
    yield (
        f"Prompts of {load.prompt} tokens, {load.tokens} new ones each, greedy, bfloat16. The floor is weights, keys and values "
        f"read at the {ceilings.copy / 1e9:.0f} GB/s that a copy reads and writes here. Idle is the share of a traced run in "
        "which the GPU had no kernel and no copy to run. Times is peers' seconds over ours."
    )
    yield ""
    notes: list[str] = []
    yield HEADER
    for name in [name for name in chosen if name in texts]:
        place = write_checkpoint(folder / name, texts[name], device=str(device))
        free(device)
        for batch in batches or ((1, 3) if small else BATCHES):
            row, *failed = text_row(name, texts[name], place, device, batch, load, ceilings, small)
            notes += failed
            yield row
    yield ""
    yield from notes
    for name in [name for name in chosen if name not in texts]:
        yield from picture_report(name, PICTURES[small][name], device, folder / name.replace("/", "-"), small)
        free(device)
