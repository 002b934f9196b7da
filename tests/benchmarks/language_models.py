"""Stride against the engines that people run language models with: `python -m tests.benchmarks.language_models`.

One run, one machine, the same random weights, greedy, every contestant in its own process, in turns. Prints the rows of
`results.md`. What is installed with `pip install -e '.[test,bench]'` takes part; what is not, or does not run, says why.

- single: tokens after the first, a second, of one stream.
- streams: all tokens a second of 16 streams that begin together, prompts included.
- first: from the request until its first token.
- memory: the highest resident memory of each process, added up.
- bandwidth: bytes of the weights that a token reads, times single, over what the same threads read from memory in a
  second; more than 1 where the weights fit into a cache.
- ratios: the first contestant's figure over this one's, the median of the turns'.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from tests.benchmarks.agreement import TOLERANCE, largest_gap
from tests.benchmarks.checkpoints import LETTERS, SHAPES, Shape, byte_tokenizer, write_checkpoint
from tests.benchmarks.contestant import Contestant, InProcess, Prompt, Stream, Unavailable
from tests.benchmarks.engines import LlamaBatched, TransformersContinuous, TransformersGenerate
from tests.benchmarks.http_servers import llama_server, stride

WARM = 16
"""Tokens of each stream of the turn that is not counted."""
BYTES = {"bf16": 2.0, "int8": 1.0, "q8_0": 34 / 32}
HEADER = (
    "| weights | contestant | single tokens/s | streams tokens/s | first ms | first of streams ms | memory MiB | bandwidth "
    "| ratio single | ratio streams |\n|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Load:
    """What every contestant is asked, in every turn with new prompts."""

    streams: int = 16
    prompt: int = 64
    tokens: int = 128
    turns: int = 3


@dataclass(frozen=True)
class Entry:
    """A contestant before it is started."""

    name: str
    precision: str
    start: Callable[[], Contestant]
    needs: tuple[str, ...] = ()


def pace(*streams: Stream) -> float:
    """Tokens a second from the request to the last token of all."""
    return sum(each.count for each in streams) / max(each.last for each in streams)


@dataclass
class Result:
    """What was measured, turn by turn; seconds and tokens a second."""

    name: str
    precision: str
    why_not: str | None = None
    single: list[float] = field(default_factory=list)
    streams: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    first_of_streams: list[float] = field(default_factory=list)
    memory: int = 0
    gap: float | None = None

    def add(self, alone: Stream, together: list[Stream]) -> None:
        self.single.append((alone.count - 1) / (alone.last - alone.first))
        self.streams.append(pace(*together))
        self.first.append(alone.first)
        self.first_of_streams.append(statistics.median(each.first for each in together))


def entries(folder: Path, threads: int, load: Load, stride_options: Sequence[str]) -> list[Entry]:
    """Stride first, with each of these options and number of threads, then its peers."""
    length = load.prompt + load.tokens
    found = []
    for options in stride_options:
        precision = "int8" if "int8" in options else "bf16"
        for count in dict.fromkeys((threads, 0)):
            name = f"Stride over HTTP, {options}, threads {count or 'not set'}"
            log = folder / f"stride-{options}-{count}.log"
            found.append(Entry(name, precision, partial(stride, folder, count, options, log)))

    def inside(factory: Callable[..., object]) -> Callable[[], Contestant]:
        return partial(InProcess, factory, folder, threads, load.streams, length)

    for quant in ("bf16", "q8_0"):
        found.append(Entry(f"llama.cpp {quant}, engine only", quant, inside(LlamaBatched(quant)), ("llama_cpp", "gguf")))
    server = partial(llama_server, folder, threads, "bf16", folder / "llama-server.log")
    needs = ("llama_cpp", "gguf", "sse_starlette", "starlette_context")
    found.append(Entry("llama.cpp bf16, its Python server over HTTP", "bf16", server, needs))
    found.append(Entry("transformers generate, engine only", "bf16", inside(TransformersGenerate), ("transformers",)))
    found.append(
        Entry("transformers continuous batching, engine only", "bf16", inside(TransformersContinuous), ("transformers",))
    )
    return found


def prompts(shape: Shape, load: Load, turn: int) -> list[Prompt]:
    rng = random.Random(turn)
    tokenizer = byte_tokenizer(shape.vocab)
    texts = ["".join(rng.choice(LETTERS) for _ in range(load.prompt)) for _ in range(load.streams + 1)]
    return [Prompt(text, tuple(tokenizer.encode(text).ids)) for text in texts]


def read_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read from a buffer larger than any cache: the best of several sums."""
    torch.set_num_threads(threads)
    buffer = torch.ones(1 << 28)
    best = min(_seconds(lambda: buffer.sum()) for _ in range(7))
    return buffer.numel() * buffer.itemsize / best


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Race:
    """All contestants: `start` also warms them up, every `turn` asks each of them once, each time another one first, and
    `stop` is owed in any case."""

    def __init__(self, folder: Path, shape: Shape, contestants: Sequence[Entry], load: Load) -> None:
        self.results = [Result(entry.name, entry.precision) for entry in contestants]
        self._folder, self._shape, self._load = folder, shape, load
        self._running: list[tuple[Contestant, Result]] = []
        self._turns = 0
        self._contestants = contestants

    def start(self) -> None:
        for entry, result in zip(self._contestants, self.results, strict=True):
            self._start(entry, result)
        self._ask_all(min(WARM, self._load.tokens), self._check)

    def turn(self) -> None:
        first = self._turns % max(1, len(self._running))
        self._running = self._running[first:] + self._running[:first]
        self._turns += 1
        self._ask_all(self._load.tokens, lambda result, _, alone, together: result.add(alone, together))

    def stop(self) -> None:
        for contestant, result in self._running:
            result.memory = contestant.peak_memory() if result.why_not is None else 0
            contestant.close()

    def _start(self, entry: Entry, result: Result) -> None:
        missing = [name for name in entry.needs if find_spec(name) is None]
        if missing:
            result.why_not = f"not installed: {', '.join(missing)}"
            return
        try:
            self._running.append((entry.start(), result))
        except Unavailable as error:
            result.why_not = str(error)

    def _ask_all(self, count: int, take: Callable[[Result, list[Prompt], Stream, list[Stream]], None]) -> None:
        """One stream, then all at once, of every contestant that still runs."""
        asked = prompts(self._shape, self._load, self._turns)
        for contestant, result in self._running:
            if result.why_not is not None:
                continue
            try:
                (alone,) = contestant.generate(asked[:1], count)
                together = contestant.generate(asked[1:], count)
            except Unavailable as error:
                result.why_not = str(error)
                continue
            assert all(each.count == count for each in [alone, *together]), f"{result.name} gave too few tokens"
            take(result, asked, alone, together)
            print(f"{result.name}: {pace(alone):.0f} alone, {pace(*together):.0f} together", file=sys.stderr, flush=True)

    def _check(self, result: Result, asked: list[Prompt], alone: Stream, together: list[Stream]) -> None:
        """What comes in the turn that is not counted is compared with the reference."""
        if alone.tokens:
            pairs = [(asked[0], alone), (asked[1], together[0]), (asked[-1], together[-1])]
            result.gap = largest_gap(self._folder, pairs)
            assert result.gap < TOLERANCE, f"{result.name} computes another model: {result.gap:.2f} off"


def measure(folder: Path, shape: Shape, contestants: Sequence[Entry], load: Load) -> list[Result]:
    race = Race(folder, shape, contestants, load)
    try:
        race.start()
        for _ in range(load.turns):
            race.turn()
    finally:
        race.stop()
    return race.results


def rows(size: str, shape: Shape, results: Sequence[Result], bandwidth: float) -> list[str]:
    ours = results[0]
    return [_row(size, shape, result, ours, bandwidth) for result in results]


def _row(size: str, shape: Shape, result: Result, ours: Result, bandwidth: float) -> str:
    if result.why_not is not None:
        reason = result.why_not.replace("|", "/").replace("\n", " ")
        return f"| {size} | {result.name} | {reason} | | | | | | | |"
    single, streams, first, first_of_streams = (
        statistics.median(values) for values in (result.single, result.streams, result.first, result.first_of_streams)
    )
    share = shape.matrix_weights() * BYTES[result.precision] * single / bandwidth
    ratios = ["", ""]
    if result is not ours and ours.why_not is None:
        pairs = ((ours.single, result.single), (ours.streams, result.streams))
        ratios = [f"{statistics.median(a / b for a, b in zip(*pair, strict=True)):.2f}" for pair in pairs]
    cells = [
        size, result.name, f"{single:.0f}", f"{streams:.0f}", f"{1e3 * first:.0f}", f"{1e3 * first_of_streams:.0f}",
        f"{result.memory / 2**20:.0f}", f"{share:.2f}", *ratios,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def prepare(folder: Path, shape: Shape) -> Path:
    """The checkpoint, and where `gguf` is installed llama.cpp's files of it; written once."""
    if not (folder / "model.safetensors").is_file():
        write_checkpoint(folder, shape)
    if find_spec("gguf") is not None:
        from tests.benchmarks.gguf_file import write_gguf

        write_gguf(folder, "bf16")
        write_gguf(folder, "q8_0")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["15M", "135M"])
    parser.add_argument("--threads", type=int, default=2, help="of every contestant; Stride also runs without a number")
    parser.add_argument("--streams", type=int, default=Load.streams)
    parser.add_argument("--prompt", type=int, default=Load.prompt, help="tokens")
    parser.add_argument("--tokens", type=int, default=Load.tokens, help="new tokens of each stream")
    parser.add_argument("--turns", type=int, default=Load.turns)
    parser.add_argument("--stride", nargs="+", default=["dtype=bfloat16"], help="OPTIONS of --model NAME=FOLDER,OPTIONS")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="contestants whose name holds one of these")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are kept; else they are written anew")
    parser.add_argument("--json", type=Path, help="file for every turn's figures")
    args = parser.parse_args()
    load = Load(args.streams, args.prompt, args.tokens, args.turns)
    with tempfile.TemporaryDirectory() as temporary:
        kept = args.folder or Path(temporary)
        record: dict[str, object] = {"load": asdict(load), "threads": args.threads, "sizes": {}}
        lines = [HEADER]
        for size in args.sizes:
            shape = SHAPES[size]
            folder = prepare(kept / size, shape)
            bandwidth = read_bandwidth(args.threads)
            chosen = [e for e in entries(folder, args.threads, load, args.stride) if any(word in e.name for word in args.only)]
            results = measure(folder, shape, chosen, load)
            bandwidth = max(bandwidth, read_bandwidth(args.threads))
            lines += rows(size, shape, results, bandwidth)
            record["sizes"][size] = {"bandwidth": bandwidth, "results": [asdict(result) for result in results]}  # type: ignore[index]
            print(f"{size}: {bandwidth / 1e9:.1f} GB/s read; largest gap to the reference", end=" ")
            print(", ".join(f"{r.name} {r.gap:.3f}" for r in results if r.gap is not None), flush=True)
        print("\n".join(lines))
        if args.json is not None:
            args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
