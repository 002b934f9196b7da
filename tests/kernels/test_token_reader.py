"""What is read of logits: on a GPU's way in Triton the same as on a CPU's."""

from __future__ import annotations

import pytest
import torch

from kernels.dispatch import TRITON_IS_THERE, prefer_triton
from service.procedures.types import Axis, TokenRow
from service.workers.threads import Threads
from service.workers.token_reader import TokenReader
from service.workers.types import Draws, RowError, TokenMove, TokenOutcome, TokenRead

VOCABULARY = 90
DRAWS = (
    Draws(1), Draws(2, temperature=0.0), Draws(3, temperature=0.7, top_k=5), Draws(4, top_p=0.6, bias={7: 2.0, 8: -100.0}),
    Draws(5, min_p=0.2, logprobs=2), Draws(6, temperature=0.0, allowed=bytes([255, 3] + [0] * 10)),
)  # fmt: skip


def moves() -> list[TokenMove]:
    """Canvases whose spread is asked for and rows that are not, each with its own draws."""
    rows = [
        TokenRow(Axis.REFINE, (1, 2, 3), 4 + i, "block", False, (0, 2), spread=i % 2 == 0, heat=1.0 + 0.25 * i)
        for i in range(len(DRAWS))
    ]
    return [TokenMove((row,), [0], draws) for row, draws in zip(rows, DRAWS, strict=True)]


def read(logits: torch.Tensor) -> list[TokenOutcome]:
    reader = TokenReader((3, 89), logits.device, Threads(1, 1))
    return reader.read(moves(), logits.clone()).outcomes()


@pytest.mark.skipif(not TRITON_IS_THERE, reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="tensors of a CPU need Triton's interpreter")
def test_drawn_in_triton_all_is_read_that_torch_reads() -> None:
    logits = 2 * torch.randn(2 * len(DRAWS), VOCABULARY, generator=torch.Generator().manual_seed(4))
    expected = read(logits)
    with prefer_triton():
        got = read(logits)
    for one, other in zip(got, expected, strict=True):
        assert isinstance(one, TokenRead) and isinstance(other, TokenRead)
        for mine, theirs in zip(one.readings, other.readings, strict=True):
            assert (mine.token, mine.likeliest) == (theirs.token, theirs.likeliest) and mine.token not in (3, 89)
            assert mine.confidence == pytest.approx(theirs.confidence, rel=1e-5)
            assert mine.entropy == (None if theirs.entropy is None else pytest.approx(theirs.entropy, rel=1e-4, abs=1e-6))
            assert mine.margin == (None if theirs.margin is None else pytest.approx(theirs.margin, rel=1e-4, abs=1e-6))
            assert mine.top == theirs.top
    spreads = [reading.entropy is not None for outcome in got for reading in outcome.readings]
    assert spreads == [i % 2 == 0 for i in range(len(DRAWS)) for _ in range(2)]


def test_a_move_whose_logits_are_not_finite_fails_alone() -> None:
    logits = torch.randn(2 * len(DRAWS), VOCABULARY)
    logits[3, 5] = float("nan")
    outcomes = read(logits)
    assert [isinstance(outcome, RowError) for outcome in outcomes] == [False, True, *[False] * 4]
