"""Token sampling in Triton draws what the reference draws: every filter, ties, odd vocabularies, rows of several parts."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.dispatch import prefer_triton
from kernels.token_sampling import Kinds, draw_tokens, reference, spread
from tests.few import few

pytest.importorskip("triton")
from kernels.token_sampling.triton_draw import draw, measure

PURPOSE = 5
SPAN = 64
ON = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Columns:
    """How every row is drawn."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: Tensor
    numbers: Tensor

    def __iter__(self):
        return (getattr(self, field.name).to(ON) for field in fields(self))


def columns(rows: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Columns:
    return Columns(
        torch.full((rows,), temperature), torch.full((rows,), top_k), torch.full((rows,), top_p), torch.full((rows,), min_p),
        torch.arange(rows) * 7919 - 3, torch.arange(rows) + (1 << 33),
    )  # fmt: skip


def logits_of(rows: int, vocabulary: int, seed: int, scale: float = 2.0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def assert_same(logits: Tensor, how: Columns, span: int = SPAN, kinds: Kinds | None = None) -> None:
    expected, probability = reference.draw_tokens(logits, *(column.cpu() for column in how), PURPOSE)
    drawn = draw(logits.to(ON), *how, PURPOSE, kinds or Kinds(), span=span)
    assert drawn.token.tolist() == expected.tolist()
    torch.testing.assert_close(drawn.confidence.cpu(), probability, rtol=1e-5, atol=1e-9, equal_nan=True)


@settings(max_examples=3, deadline=None, phases=[Phase.generate])
@given(st.data())
def test_mixed_rows_draw_what_the_reference_draws(data: st.DataObject) -> None:
    vocabulary = data.draw(st.sampled_from([1, 63, 64, 65, 129]))
    rows = data.draw(st.integers(1, 3))
    each = lambda *values: torch.tensor(data.draw(st.lists(st.sampled_from(values), min_size=rows, max_size=rows)))  # noqa: E731
    how = Columns(
        each(0.0, 0.3, 1.0, 1.7), each(0, 1, 3, 50, 10**9), each(1.0, 0.9, 0.5, 1e-4), each(0.0, 0.1, 1.0),
        torch.tensor(data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=rows, max_size=rows))),
        torch.tensor(data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=rows, max_size=rows))),
    )  # fmt: skip
    assert_same(logits_of(rows, vocabulary, data.draw(st.integers(0, 99))), how, SPAN)


@pytest.mark.parametrize("top_k", few([((7, 129),), ((1, 7, 64, 129, 130, 131),)], ((7, 129),)), ids=len)
def test_top_k_keeps_the_first_of_equals(top_k: tuple[int, ...]) -> None:
    """Four values over 130 tokens: the border lies among ties of several parts."""
    rows = len(top_k)
    logits = torch.randint(0, 4, (rows, 130), generator=torch.Generator().manual_seed(1)).float() - 2.0
    assert_same(logits, replace(columns(rows), top_k=torch.tensor(top_k)), kinds=Kinds(top_p=False))
    tied = torch.zeros(4, 130)
    drawn = draw(tied.to(ON), *columns(4, top_k=5), PURPOSE, Kinds(top_p=False), span=SPAN).token.tolist()
    assert set(drawn) <= set(range(5)) and len(set(drawn)) > 1


def test_top_p_keeps_the_first_of_equals() -> None:
    """Sixteen equal tokens and a share of exactly half: eight of them, where floats of any order would add up the same."""
    logits = torch.zeros(6, 80)
    logits[:, 16:] = float("-inf")
    drawn = draw(logits.to(ON), *columns(6, top_p=0.5), PURPOSE, Kinds(top_k=False), span=SPAN).token.tolist()
    assert set(drawn) <= set(range(8)) and len(set(drawn)) > 2


def test_top_p_takes_a_share_of_what_top_k_cut_among_equals() -> None:
    """Of 100 equals top-k leaves the first ten, and top-p half of these."""
    logits = torch.zeros(6, 100)
    drawn = draw(logits.to(ON), *columns(6, top_k=10, top_p=0.5), PURPOSE, span=SPAN).token.tolist()
    assert set(drawn) <= set(range(5)) and len(set(drawn)) > 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_precision_with_their_many_equals(dtype: torch.dtype) -> None:
    logits = logits_of(2, 500, 1).to(dtype).float()
    assert_same(logits, columns(2, temperature=0.8, top_k=40, top_p=0.9), 256)


def test_flat_and_steep_rows() -> None:
    logits = torch.cat([logits_of(1, 120, 3, scale) for scale in (1e-6, 1e-3, 100.0, 1e4)])
    assert_same(logits, columns(4, top_p=0.9), kinds=Kinds(top_k=False))
    assert_same(logits, columns(4, temperature=0.05), kinds=Kinds(top_k=False, top_p=False))


def test_rows_of_one_sign_and_with_both_zeros() -> None:
    logits = torch.cat((-logits_of(1, 100, 5).abs() - 1.0, logits_of(1, 100, 6).abs() + 1e-30, torch.zeros(1, 100)))
    logits[2, ::2] = -0.0
    assert_same(logits, columns(3, top_k=20, top_p=0.7))


def test_banned_tokens_are_not_drawn_and_a_row_of_them_alone_ends() -> None:
    logits = logits_of(4, 140, 7)
    logits[0, :139] = float("-inf")
    logits[1, 64:128] = float("-inf")
    logits[2] = float("-inf")
    for how, kinds in (({}, Kinds(top_k=False, top_p=False)), ({"top_k": 100}, Kinds(top_p=False)), ({"top_p": 0.9}, Kinds())):
        assert_same(logits, columns(4, **how), kinds=kinds)
    logits[3, 5] = float("nan")
    drawn = draw(logits.to(ON), *columns(4, top_p=0.5), PURPOSE, Kinds(top_k=False), span=SPAN)
    assert drawn.token[0] == 139 and 0 <= int(drawn.token[3]) < 140


@pytest.mark.parametrize(
    ("kinds", "how"),
    [
        (Kinds(drawn=False), {"temperature": 0.0}),
        (Kinds(top_k=False, top_p=False, min_p=False), {}),
        (Kinds(top_k=False, top_p=False), {"min_p": 0.2}),
        (Kinds(top_p=False), {"top_k": 5}),
        (Kinds(top_k=False), {"top_p": 0.6}),
    ],
)  # fmt: skip
def test_passes_that_no_row_needs_can_be_left_out(kinds: Kinds, how: dict[str, float]) -> None:
    assert_same(logits_of(2, 100, 11), columns(2, **how), kinds=kinds)


def test_a_row_does_not_depend_on_its_batch_nor_one_run_on_another() -> None:
    logits, how = logits_of(3, 120, 13).to(ON), columns(3, temperature=0.9, top_p=0.8)
    by_p = Kinds(top_k=False)
    together, again = (draw(logits, *how, PURPOSE, by_p, span=SPAN) for _ in range(2))
    for name in ("token", "confidence"):
        assert torch.equal(getattr(together, name), getattr(again, name))
    alone = draw(logits[2:], *(column[2:] for column in how), PURPOSE, by_p, span=SPAN)
    assert alone.token == together.token[2] and alone.confidence == together.confidence[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_large_vocabulary_in_its_own_spans() -> None:
    """151,936 tokens are 19 parts of 8,192."""
    logits = logits_of(3, 151_936, 17)
    how = replace(
        columns(3, temperature=0.9), top_k=torch.tensor([0, 50, 1000]), top_p=torch.tensor([0.95, 1.0, 0.5])
    )  # fmt: skip
    expected, _ = reference.draw_tokens(logits, *(column.cpu() for column in how), PURPOSE)
    with prefer_triton():
        token, _ = draw_tokens(logits.to(ON), *how, PURPOSE)
    assert token.tolist() == expected.tolist()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("vocabulary", [1000, 5003])
def test_many_random_rows(vocabulary: int) -> None:
    rows, generator = 24, torch.Generator().manual_seed(vocabulary)
    pick = lambda *values: torch.tensor(values)[torch.randint(len(values), (rows,), generator=generator)]  # noqa: E731
    how = replace(
        columns(rows), temperature=pick(0.0, 0.5, 1.0, 1.5), top_k=pick(0, 1, 20, 500), top_p=pick(1.0, 0.99, 0.9, 0.3),
        min_p=pick(0.0, 0.0, 0.02),
    )  # fmt: skip
    assert_same(logits_of(rows, vocabulary, vocabulary), how, 1024)


@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(st.sampled_from([2, 64, 65, 200]), st.sampled_from([0.3, 1.0, 2.5]), st.integers(0, 50))
def test_entropy_margin_and_the_likeliest_are_the_references(vocabulary: int, temperature: float, seed: int) -> None:
    logits = logits_of(2, vocabulary, seed)
    logits[1, 1 : vocabulary // 2] = float("-inf")
    if seed % 2:
        logits[0, vocabulary - 1] = logits[0].max()
    entropy, margin = reference.spread(logits, torch.full((2,), temperature))
    measured = measure(logits.to(ON), torch.full((2,), temperature, device=ON), SPAN)
    torch.testing.assert_close(measured.entropy.cpu(), entropy, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(measured.margin.cpu(), margin, rtol=1e-5, atol=1e-6)
    assert measured.likeliest.tolist() == logits.argmax(-1).tolist()
    torch.testing.assert_close(measured.confidence.cpu(), torch.softmax(logits, -1).amax(-1))


def test_one_pass_draws_and_measures() -> None:
    logits, how = logits_of(3, 100, 19).to(ON), columns(3, temperature=0.8)
    warmth = torch.tensor([0.8, 1.0, 2.0], device=ON)
    free = Kinds(top_k=False, top_p=False)
    both, alone = (draw(logits, *how, PURPOSE, free, warmth=given, span=SPAN) for given in (warmth, None))
    assert torch.equal(both.token, alone.token)
    with prefer_triton():
        entropy, margin = spread(logits, warmth)
    torch.testing.assert_close(both.entropy, entropy)
    torch.testing.assert_close(both.margin, margin)


def test_a_vocabulary_whose_weights_would_not_fit_a_word_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer than"):
        draw(torch.zeros(1, 1 << 19), *columns(1), PURPOSE)
