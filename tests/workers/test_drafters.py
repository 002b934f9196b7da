"""Drafters in the worker: they change how many forwards a text takes, and never the text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from service.models.loading import EMBEDDED
from service.procedures.drafts import accepted
from service.procedures.types import Axis, Draft, TokenRow
from service.workers.hosting import Hosting, TextHost, host
from service.workers.kernel_forward import KernelForward
from service.workers.types import Deferred, Draws, RowError, TokenMove
from tests.checkpoints import write_decoder
from tests.few import few
from tests.heads import add_mtp, write_eagle, write_medusa, write_mtp

KINDS = ("mtp", "mtp inside", "eagle", "medusa", "draft_model", "itself")


def served(spec: str, batch_invariant: bool = False) -> TextHost:
    hosted = host(spec, Hosting("cpu", 1, 8 << 20, 16, 1, batch_invariant))
    assert isinstance(hosted, TextHost)
    return hosted


def drafting(tmp_path: Path, kind: str, options: str = "") -> tuple[TextHost, str]:
    """A random model with a drafter of this kind, and the drafter's name; `itself` guesses always right."""
    model = write_decoder(tmp_path / "model")
    if kind == "mtp inside":
        return served(f"m={add_mtp(model)}{options}"), "heads"
    if kind in ("draft_model", "itself"):
        small = model if kind == "itself" else write_decoder(tmp_path / "small", seed=1)
        return served(f"m={model},draft_model={small}{options}"), "draft_model"
    folder = {"mtp": write_mtp, "eagle": write_eagle, "medusa": write_medusa}[kind](tmp_path / "heads", model)
    return served(f"m={model},heads={folder}{options}"), "heads"


@dataclass
class Writer:
    """A request: it commits what the model drew, and offers the guesses that came with it."""

    tokens: list[int]
    blocks: list[int]
    draws: Draws
    drafter: str
    drafting: int
    chunk: int = 1000
    cached: int = 0
    guesses: Draft | None = None
    forwards: int = 0
    width: int = 1
    deferred: Deferred = field(default_factory=Deferred)

    def move(self) -> TokenMove:
        rest = self.tokens[self.cached :]
        if len(rest) > self.chunk:
            row = TokenRow(Axis.EXPAND, tuple(rest[: self.chunk]), self.cached, "causal", True, ())
            next_token = rest[self.chunk]
            return TokenMove((row,), self.blocks, self.draws, (), self.drafting, self.drafter, next_token, self.deferred)
        guesses = self.guesses or Draft((), ())
        if not guesses.is_chain:
            (token,) = rest
            row = TokenRow.tree(token, self.cached, guesses)
        else:
            wanted, count = tuple(range(len(rest) - 1, len(rest) + len(guesses.tokens))), len(guesses.tokens)
            row = TokenRow(Axis.EXPAND, (*rest, *guesses.tokens), self.cached, "causal", True, wanted, drafts=count)
        return TokenMove((row,), self.blocks, self.draws, (), self.drafting, self.drafter, None, self.deferred, self.width)

    def fold(self, move: TokenMove, outcome: object) -> None:
        assert not isinstance(outcome, RowError), outcome
        row = move.rows[0]
        if not row.wanted:
            self.cached += len(row.tokens)
            return
        drawn = [reading.token for reading in outcome.readings]  # type: ignore[attr-defined]
        path = accepted(row.draft(), drawn)
        self.cached = len(self.tokens) + len(path)
        self.tokens += [drawn[1 + i] for i in (-1, *path)]
        self.guesses = outcome.draft  # type: ignore[attr-defined]
        assert self.guesses is None or len(self.guesses.tokens) <= self.drafting * self.width
        self.forwards += 1


def write(model: TextHost, writers: Iterable[Writer], length: int) -> list[list[int]]:
    """All of them together in every forward, until each has `length` tokens more."""
    writers = list(writers)
    goals = [len(writer.tokens) + length for writer in writers]
    while going := [w for w, goal in zip(writers, goals, strict=True) if len(w.tokens) < goal]:
        moves = [writer.move() for writer in going]
        for writer, move, outcome in zip(going, moves, model.worker.run(moves), strict=True):
            writer.fold(move, outcome)
    return [writer.tokens[:goal] for writer, goal in zip(writers, goals, strict=True)]


def writers(model: TextHost, drafter: str, guesses: int, prompts: list[list[int]], draws: list[Draws]) -> list[Writer]:
    made = []
    for prompt, draw in zip(prompts, draws, strict=True):
        blocks = model.pool.allocate(model.pool.blocks_for(len(prompt) + 90))
        made.append(Writer(list(prompt), blocks, draw, drafter, guesses))
    return made


PROMPTS = [[(7 * i + j * j) % 250 for i in range(length)] for j, length in enumerate((3, 20, 41, 1))]
DRAWS = [
    Draws(11, 0.0), Draws(12, 1.0, top_k=40), Draws(13, 0.7, top_p=0.8, bias={65: 3.0}, banned=(66,)),
    Draws(1 << 60, 1.3, min_p=0.02),
]  # fmt: skip


PLAIN, ROUNDED = "", ",dtype=bfloat16"
OFTEN = (("mtp", PLAIN), ("eagle", PLAIN), ("eagle", ROUNDED), ("medusa", PLAIN), ("draft_model", PLAIN))


@pytest.mark.parametrize("kind,options", few(itertools.product(KINDS, (PLAIN, ROUNDED)), *OFTEN))
def test_the_text_is_the_one_without_guesses(tmp_path: Path, kind: str, options: str) -> None:
    model, drafter = drafting(tmp_path, kind, options)
    plain = write(model, writers(model, "", 0, PROMPTS, DRAWS), 40)
    for chunk in (1000, 7):
        drafted = [replace(w, chunk=chunk) for w in writers(model, drafter, 3, PROMPTS, DRAWS)]
        assert write(model, drafted, 40) == plain


@pytest.mark.parametrize("kind", few(KINDS, "mtp inside", "medusa"))
def test_torch_and_one_request_among_others_that_draft_otherwise_give_the_same_text(tmp_path: Path, kind: str) -> None:
    model, drafter = drafting(tmp_path, kind)
    plain = write(model, writers(model, "", 0, PROMPTS, DRAWS), 30)
    mixed = writers(model, drafter, 2, PROMPTS, DRAWS)
    mixed[0].drafter, mixed[1].drafting = "", 5
    assert write(model, mixed, 30) == plain


@pytest.mark.parametrize("kind", few(["mtp", "draft_model"], "draft_model"))
def test_without_the_kernel_the_text_is_the_one_without_guesses(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.models.decoder_serving.library", lambda: None)
    model, drafter = drafting(tmp_path, kind)
    assert model.worker.run_by == "torch"
    plain = write(model, writers(model, "", 0, PROMPTS, DRAWS), 20)
    for width in (1, 2, 4):
        drafted = [replace(w, width=width) for w in writers(model, drafter, 3, PROMPTS, DRAWS)]
        assert write(model, drafted, 20) == plain


@pytest.mark.parametrize("kind", few(KINDS, "draft_model", "eagle", "medusa"))
def test_what_is_guessed_beside_a_guess_is_the_next_best_and_changes_nothing(tmp_path: Path, kind: str) -> None:
    model, drafter = drafting(tmp_path, kind)
    plain = write(model, writers(model, "", 0, PROMPTS, DRAWS), 30)
    drafted = [replace(w, width=width) for w, width in zip(writers(model, drafter, 3, PROMPTS, DRAWS), (1, 2, 3, 4), strict=True)]
    assert write(model, drafted, 30) == plain
    shapes = [len(writer.guesses.tokens) for writer in drafted if writer.guesses is not None]
    assert shapes == [shapes[0] * width for width in (1, 2, 3, 4)]
    for writer in drafted[1:]:
        assert writer.guesses is not None
        firsts = [token for token, parent in zip(writer.guesses.tokens, writer.guesses.parents, strict=True) if parent < 0]
        assert len(set(firsts)) == len(firsts) == writer.width


@pytest.mark.parametrize("vocab_size", [261, 280])
def test_a_drafter_whose_vocabulary_is_padded_otherwise_does_not_stumble_over_padding(tmp_path: Path, vocab_size: int) -> None:
    small = write_decoder(tmp_path / "small", seed=1, vocab_size=vocab_size)
    model = served(f"m={write_decoder(tmp_path / 'model')},draft_model={small}")
    prompts = [[65, 263, 66, 67], [65, 66, 263]]
    plain = write(model, writers(model, "", 0, prompts, DRAWS[:2]), 20)
    assert write(model, writers(model, "draft_model", 3, prompts, DRAWS[:2]), 20) == plain


def test_a_model_that_drafts_for_itself_is_always_right(tmp_path: Path) -> None:
    model, drafter = drafting(tmp_path, "itself")
    drafted = writers(model, drafter, 4, PROMPTS, DRAWS)
    write(model, drafted, 60)
    assert [writer.forwards for writer in drafted] == [1 + 12] * 4


def test_every_guess_of_a_request_is_kept_when_it_was_right_whatever_the_chunks_of_its_prompt(tmp_path: Path) -> None:
    model, drafter = drafting(tmp_path, "itself")
    for chunk in (1, 5, 16):
        drafted = [replace(w, chunk=chunk) for w in writers(model, drafter, 4, PROMPTS[1:3], DRAWS[:2])]
        write(model, drafted, 40)
        assert [writer.forwards for writer in drafted] == [1 + 8] * 2


@pytest.mark.parametrize("kind", few(KINDS, "draft_model", "eagle", "mtp"))
def test_a_drafter_without_numbers_changes_nothing(tmp_path: Path, kind: str) -> None:
    model, drafter = drafting(tmp_path, kind)
    plain = write(model, writers(model, "", 0, PROMPTS, DRAWS), 20)
    worker = model.worker.drafters[drafter]
    for held in (getattr(worker, "_heads", None), getattr(worker, "_module", None)):
        for parameter in [] if held is None else held.parameters():
            parameter.data.fill_(float("nan"))
    if kind in ("draft_model", "itself"):
        forward: Any = worker._forward  # type: ignore[attr-defined]
        reader = forward.decoder if isinstance(forward, KernelForward) else forward
        embed = reader.embed
        reader.embed = lambda tokens: embed(tokens) * float("nan")
    drafted = writers(model, drafter, 3, PROMPTS, DRAWS)
    assert write(model, drafted, 20) == plain
    assert all(writer.forwards == 20 for writer in drafted)
    cache = getattr(worker, "_cache", None)
    assert cache is None or bool(torch.isfinite(cache.store).all()), "what is not a number waits for whoever gets the block next"


@pytest.mark.parametrize("temperature", few([0.0, 0.8, 1.0], 0.0))
def test_shakespeare_writes_more_than_two_tokens_a_forward(temperature: float) -> None:
    model = served("shakespeare")
    prompts = [list(text.encode()) for text in ("ROMEO:\n", "First Citizen:\nWe are ", "KING RICHARD III:\nWhat,", "The ")]
    draws = [Draws(seed, temperature) for seed in range(4)]
    plain = write(model, writers(model, "", 0, prompts, draws), 80)
    drafted = writers(model, "heads", 5, prompts, draws)
    assert write(model, drafted, 80) == plain
    assert 4 * 80 / sum(writer.forwards for writer in drafted) > 2.0


def test_memory_at_start_counts_what_drafters_keep(tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "model")
    alone = served(f"m={model}").pool.blocks
    write_medusa(tmp_path / "medusa", model)
    assert served(f"m={model},heads={tmp_path / 'medusa'}").pool.blocks == alone
    write_mtp(tmp_path / "mtp", model)
    assert served(f"m={model},heads={tmp_path / 'mtp'}").pool.blocks == alone * 2 // 3
    assert served(f"m={model},draft_model={write_decoder(tmp_path / 'small')}").pool.blocks == alone // 2
    assert (EMBEDDED / "shakespeare" / "heads" / "model.safetensors").stat().st_size < 3 << 20
