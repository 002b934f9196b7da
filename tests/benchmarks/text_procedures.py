"""Every way to get several tokens from one forward, beside each other: `python -m tests.benchmarks.text_procedures`.

Asks a server of the embedded model `shakespeare` for continuations of held-out text, with next-token sampling, verified
drafting with each drafter, and each rule of block diffusion over its main knob. Per procedure and temperature:

- tokens/forward: generated tokens over all forwards of the requests, the prompt's among them.
- same text: share of the samples that are, token for token, next-token sampling's with the same seed.
- accepted: guesses that stood, by their depth: of those that were verified after all before them stood.
- nats: a separately trained judge's mean negative log-likelihood a token, and how much worse that is than next-token
  sampling's at the same temperature. distinct-4: distinct 4-grams over all of them; low for dull texts.
- alone, 16 streams: tokens/s of one request after another, and of 16 at a time, and their ratio to next-token sampling
  in the same turn; medians of the turns.

`--judge` is a folder that `stride train judge` wrote, `--text` the text whose last tenth gives the prompts. `--picture`
draws quality against forwards.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from service.training.evaluate_text import PROMPT_LENGTH, distinct_ngrams, judge_nats
from service.training.text_data import TextCorpus
from service.training.text_model_folder import read_text_model
from tests.http.server import Server

STREAMS = 16
ALONE = 3
"""Requests one after another in a turn."""
PLAIN = "next token"


@dataclass(frozen=True)
class Case:
    """A row of the table before it is measured. `group` is a line of the picture."""

    name: str
    group: str
    procedure: dict[str, Any]


@dataclass
class Score:
    """What a case came to at one temperature; seconds turn by turn."""

    case: Case
    temperature: float
    tokens: list[list[int]] = field(default_factory=list)
    forwards: int = 0
    nats: float = 0.0
    distinct_4: float = 0.0
    same: float = 0.0
    depths: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    streams: list[float] = field(default_factory=list)

    @property
    def tokens_per_forward(self) -> float:
        return sum(map(len, self.tokens)) / self.forwards


def cases(drafters: Sequence[str], block_lengths: Sequence[int]) -> Iterator[Case]:
    yield Case(PLAIN, PLAIN, {"name": "autoregressive"})
    for drafter in drafters:
        for count in (2, 4, 6):
            procedure = {"name": "speculative", "drafter": drafter, "draft_tokens": count}
            yield Case(f"verified, {drafter}, {count}", "verified", procedure | {"adaptive": False})
        if drafter == "heads":
            tree = procedure | {"adaptive": False, "draft_tokens": 4, "width": 2}
            yield Case(f"verified, {drafter}, 4, width 2", "verified", tree)
        yield Case(f"verified, {drafter}, as it pays", "adaptive", procedure)
    for length, steps in ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1)):
        if length in block_lengths:
            procedure = {"name": "block_diffusion", "block_length": length, "rule": "confidence", "steps": steps}
            yield Case(f"{length // steps} at once, blocks of {length}", "independent", procedure)
    for rule, knob, values in (
        ("threshold", "threshold", (0.9, 0.7, 0.5, 0.4, 0.3)),
        ("threshold", "factor", (0.5, 1.0, 2.0)),
        ("entropy_bound", "entropy_bound", (0.2, 0.5, 1.0, 2.0)),
        ("confidence", "steps", (16, 12, 8)),
        ("margin", "steps", (16, 8)),
        ("entropy", "steps", (16, 8)),
        ("remask", "steps", (32, 16)),
    ):
        group = "factor" if knob == "factor" else rule
        for value in values:
            procedure = {"name": "block_diffusion", "block_length": 32, "rule": rule, knob: value}
            yield Case(f"{group}, {knob} {value:g}" if knob != group else f"{group} {value:g}", group, procedure)


class Table:
    """A server, prompts int64 [S, 64] of held-out text, and a judge."""

    def __init__(self, server: Server, prompts: torch.Tensor, length: int) -> None:
        self._server, self._prompts, self._length = server, prompts, length

    def ask(self, case: Case, temperature: float, sample: int) -> dict[str, Any]:
        response = self._server.post("/v1/generate", self._body(case, temperature, sample))
        assert response.status_code == 200, response.text
        return response.json()

    def samples(self, score: Score) -> None:
        """All samples, 16 at a time; what they are does not depend on that."""
        with ThreadPoolExecutor(STREAMS) as pool:
            answers = list(pool.map(lambda i: self.ask(score.case, score.temperature, i), range(len(self._prompts))))
        score.tokens = [answer["outputs"][0]["token_ids"] for answer in answers]
        score.forwards = sum(answer["usage"]["forwards"] for answer in answers)

    def turn(self, score: Score) -> None:
        """Tokens a second alone and together, once."""
        began = time.perf_counter()
        for sample in range(ALONE):
            self.ask(score.case, score.temperature, sample)
        score.alone.append(ALONE * self._length / (time.perf_counter() - began))
        began = time.perf_counter()
        with ThreadPoolExecutor(STREAMS) as pool:
            list(pool.map(lambda i: self.ask(score.case, score.temperature, i), range(STREAMS)))
        score.streams.append(STREAMS * self._length / (time.perf_counter() - began))

    def depths(self, score: Score, requests: int) -> None:
        """Of the guesses at each depth that were reached, the share that stood, from the stream's own account."""
        reached, stood = Counter[int](), Counter[int]()
        for sample in range(requests):
            body = {**self._body(score.case, score.temperature, sample), "stream": True}
            with httpx.stream("POST", self._server.url + "/v1/generate", json=body, timeout=60) as response:
                for event in _token_events(response):
                    drafted, accepted = event.get("drafted", 0), event.get("accepted", 0)
                    reached.update(range(1, min(drafted, accepted + 1) + 1))
                    stood.update(range(1, accepted + 1))
        score.depths = [stood[depth] / reached[depth] for depth in sorted(reached)]

    def _body(self, case: Case, temperature: float, sample: int) -> dict[str, Any]:
        prompt = self._prompts[sample % len(self._prompts)].tolist()
        return {
            "model": "shakespeare", "input_tokens": prompt, "max_tokens": self._length,
            "temperature": temperature, "seed": sample, "ignore_eos": True, "procedure": case.procedure,
        }  # fmt: skip


def _token_events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event:"):
            name = line.removeprefix("event:").strip()
        elif line.startswith("data:") and name == "token":
            yield json.loads(line.removeprefix("data:"))


def held_out_prompts(text: Path, tokenizer: Any, samples: int, length: int) -> torch.Tensor:
    """The prompts that `stride train evaluate-text` takes: evenly spaced in the last tenth."""
    held_out = TextCorpus.from_file(text, tokenizer).validation
    starts = torch.linspace(0, len(held_out) - PROMPT_LENGTH - length, samples).long()[:, None]
    return held_out[starts + torch.arange(PROMPT_LENGTH)]


def _pace(mine: Sequence[float], theirs: Sequence[float]) -> str:
    """Median tokens a second, and the median of the turns' ratios."""
    ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
    return f"{statistics.median(mine):.0f} ({ratio:.2f})"


def row(score: Score, plain: Score) -> str:
    pairs = ((score.alone, plain.alone), (score.streams, plain.streams))
    ratios = [_pace(mine, theirs) if mine else "" for mine, theirs in pairs]
    worse = 100 * (score.nats / plain.nats - 1)
    depths = ", ".join(f"{share:.2f}" for share in score.depths)
    cells = [
        score.case.name, f"{score.temperature:g}", f"{score.tokens_per_forward:.2f}", f"{100 * score.same:.0f} %", depths,
        f"{score.nats:.3f} ({worse:+.0f} %)", f"{score.distinct_4:.2f}", *ratios,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def draw(scores: Sequence[Score], path: Path) -> None:
    """Quality against tokens a forward, a panel for each temperature."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    temperatures = sorted({score.temperature for score in scores})
    figure, panels = plt.subplots(1, len(temperatures), figsize=(5.2 * len(temperatures), 4.2), squeeze=False)
    for panel, temperature in zip(panels[0], temperatures, strict=True):
        here = [score for score in scores if score.temperature == temperature]
        for group in dict.fromkeys(score.case.group for score in here):
            points = sorted((s.tokens_per_forward, s.nats) for s in here if s.case.group == group)
            panel.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1, label=group)
        panel.axhline(here[0].nats, color="grey", linewidth=0.6)
        panel.set(xlabel="tokens a forward", ylabel="judge, nats a token", title=f"temperature {temperature:g}")
    panels[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 0.8, 1.0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="cases whose name holds one of these")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    judge, tokenizer = read_text_model(args.judge)
    prompts = held_out_prompts(args.text, tokenizer, args.samples, args.length)
    scores: list[Score] = []
    with tempfile.TemporaryDirectory() as temporary:
        server = Server(Path(temporary) / "server.log", "--model", "shakespeare", "--threads", str(args.threads))
        try:
            (card,) = httpx.get(server.url + "/v1/models").json()["data"]
            every = cases(card["drafters"], card["block_lengths"])
            chosen = [case for case in every if case.name == PLAIN or any(word in case.name for word in args.only)]
            table = Table(server, prompts, args.length)
            print("| procedure | temperature | tokens/forward | same text | accepted | nats | distinct-4 | alone | 16 streams |")
            print("|---|---|---|---|---|---|---|---|---|")
            for temperature in args.temperature:
                here = [Score(case, temperature) for case in chosen]
                for score in here:
                    table.samples(score)
                    if score.case.group in ("verified", "adaptive"):
                        table.depths(score, min(8, args.samples))
                    tokens = torch.tensor(score.tokens)
                    score.nats, score.distinct_4 = judge_nats(judge, prompts, tokens), distinct_ngrams(tokens, 4)
                    pairs = zip(score.tokens, here[0].tokens, strict=True)
                    score.same = sum(mine == plain for mine, plain in pairs) / args.samples
                for _ in range(args.turns):
                    for score in here:
                        table.turn(score)
                print("\n".join(row(score, here[0]) for score in here), flush=True)
                scores += here
                if args.picture is not None:
                    draw(scores, args.picture)
                if args.json is not None:
                    args.json.write_text(json.dumps([asdict(score) for score in scores]))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
