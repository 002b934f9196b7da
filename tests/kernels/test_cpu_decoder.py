"""The C++ decoder against the same decoder in plain torch, for shapes of many families."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.cpu import CpuDecoder, library, pack
from service.procedures.types import TokenRow
from tests import trees
from tests.kernels.decoder_reference import HIDDEN, SHAPES, Reference, Shape, batch_of, empty_store, tree_batch

pytestmark = pytest.mark.skipif(library() is None, reason="the CPU kernels need AVX-512 with bfloat16, and g++")


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_agrees_with_plain_torch_over_chunks_and_rows(name: str, dtype: torch.dtype) -> None:
    shape = SHAPES[name]
    reference = Reference(shape, dtype)
    kernel = CpuDecoder(reference.weights(), empty_store(shape, dtype))
    x, other = reference.random(23, HIDDEN), reference.random(9, HIDDEN)
    table, second = [7, 2, 30, 11, 4, 9], [1, 0, 5]
    parts = [
        kernel.forward(torch.cat((x[:14], other)), batch_of([(0, 14, table, 0), (0, 9, second, 0)]), 2),
        kernel.forward(x[14:15].clone(), batch_of([(14, 1, table, 0)]), 2),
        kernel.forward(x[15:].clone(), batch_of([(15, 8, table, 0)]), 2),
    ]
    found = torch.cat((parts[0][:14], *parts[1:]))
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 0.06}[dtype]
    for mine, theirs in ((found, reference.forward(x)), (parts[0][14:], reference.forward(other))):
        torch.testing.assert_close(mine.double(), theirs, atol=tolerance * float(theirs.std()) * 4, rtol=0)


@pytest.mark.parametrize("window", [0, 3])
def test_a_block_row_sees_all_of_itself_and_of_what_is_cached_behind_it(window: int) -> None:
    shape = Shape(window=window)
    reference = Reference(shape, torch.float32)
    x, table, where = reference.random(12, HIDDEN), [3, 1, 2], torch.arange(12)
    for end in (12, 10):
        kernel = CpuDecoder(reference.weights(), empty_store(shape, torch.float32))
        kernel.forward(x.clone(), batch_of([(0, 12, table, 0)]), 1)
        found = kernel.forward(x[7:end].clone(), batch_of([(7, end - 7, table, 12)]), 1)
        visible = reference.visible(12) | ((where >= 7) & (where < end))[:, None] & (where >= 7)
        torch.testing.assert_close(found.double(), reference.forward(x, visible)[7:end], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "large heads"])
@pytest.mark.parametrize("guesses,masks", [(7, 0), (63, 0), (5, 3)])
@pytest.mark.parametrize("start", [0, 10])
def test_tokens_of_a_tree_see_their_branch_at_its_positions(name: str, guesses: int, masks: int, start: int) -> None:
    shape = SHAPES[name]
    reference = Reference(shape, torch.float32)
    row = TokenRow.tree(0, start, trees.random_draft(guesses, guesses), masks)
    x, table = reference.random(row.stop, HIDDEN), [i * 7 % 40 for i in range(40)]
    kernel = CpuDecoder(reference.weights(), empty_store(shape, torch.float32))
    if start:
        kernel.forward(x[:start].clone(), batch_of([(0, start, table, 0)]), 1)
    found = kernel.forward(x[start:].clone(), tree_batch(row, table), 2)
    expected = reference.forward(x, trees.dense(row, shape.window), torch.tensor([*range(start), *row.positions]))
    torch.testing.assert_close(found.double(), expected[start:], atol=1e-4 * float(expected.std()), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 3, 9])
def test_a_branch_of_a_tree_has_the_bits_that_it_has_as_a_chain(dtype: torch.dtype, window: int) -> None:
    shape = Shape(window=window, softcap=4.0)
    reference = Reference(shape, dtype)
    row = TokenRow.tree(0, 10, trees.random_draft(3, 40), 0)
    x, table = reference.random(row.stop, HIDDEN), list(range(13))
    kernel = CpuDecoder(reference.weights(), empty_store(shape, dtype))
    kernel.forward(x[:10].clone(), batch_of([(0, 10, table, 0)]), 1)
    found = kernel.forward(x[10:].clone(), tree_batch(row, table), 2)
    for offset in range(len(row.tokens)):
        chain = [10 + i for i in trees.branch(row, offset)]
        lone = kernel.forward(x[chain].clone(), batch_of([(10, len(chain), table, 0)]), 1)
        assert torch.equal(lone, found[[place - 10 for place in chain]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_of_all_tokens_come_beside_the_logits_and_change_none(dtype: torch.dtype) -> None:
    shape = SHAPES["gemma2"]
    reference = Reference(shape, dtype)
    x, table = reference.random(13, HIDDEN), [4, 1, 2, 0]
    plain, states = x.clone(), x.clone()
    kernel, batch = CpuDecoder(reference.weights(), empty_store(shape, dtype)), batch_of([(0, 13, table, 0)])
    assert torch.equal(kernel.forward(plain, batch, 2), kernel.forward(states, batch, 2, states=True))
    assert not torch.equal(plain, states)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.06}[dtype]
    torch.testing.assert_close(states.double(), reference.states(x), atol=tolerance * 4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_is_the_same_bit_for_bit_in_any_batch_and_on_any_threads(dtype: torch.dtype) -> None:
    shape = Shape(window=9, softcap=4.0)
    reference = Reference(shape, dtype)
    weights = reference.weights()
    inputs = [reference.random(5 + i, HIDDEN) for i in range(13)]
    tables = [[5 * i + 3, 5 * i, 5 * i + 4, 5 * i + 1, 5 * i + 2] for i in range(13)]
    rows = [(0, len(x), table, 0) for x, table in zip(inputs, tables, strict=True)]
    together = CpuDecoder(weights, empty_store(shape, dtype, 65)).forward(torch.cat(inputs), batch_of(rows), 2)
    at = 0
    for x, table in zip(inputs, tables, strict=True):
        alone = CpuDecoder(weights, empty_store(shape, dtype, 65))
        whole = torch.cat([alone.forward(x[i : i + 1].clone(), batch_of([(i, 1, table, 0)]), 1) for i in range(len(x))])
        assert torch.equal(whole, together[at : at + len(x)])
        at += len(x)


@pytest.mark.parametrize("name,place", [("gemma2", "key"), ("gemma2", "head"), ("gpt2", "up"), ("llama", "key"), ("relu", "up")])
def test_what_is_not_a_number_is_never_hidden(name: str, place: str) -> None:
    shape = SHAPES.get(name, Shape(activation="relu", gated=False))
    reference = Reference(shape, torch.float32)
    store = empty_store(shape, torch.float32)
    x, table = reference.random(9, HIDDEN), [1, 2, 0]
    if place == "head":
        reference.head[0][5, 7] = float("nan")
    elif place == "up":
        reference.linears[0]["up"][0][3, 4] = float("nan")
    kernel = CpuDecoder(reference.weights(), store)
    kernel.forward(x[:8].clone(), batch_of([(0, 8, table, 0)]), 2)
    if place == "key":
        store[:, 2, 1, 0] = float("nan")
    assert not torch.isfinite(kernel.forward(x[8:].clone(), batch_of([(8, 1, table, 0)]), 2)).all()


def test_int8_weights_are_what_they_stand_for() -> None:
    shape = Shape()
    reference = Reference(shape, torch.bfloat16)

    def quantised(linear: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
        scale = linear[0].float().abs().amax(1) / 127
        return (linear[0].float() / scale[:, None]).round().to(torch.int8), scale

    weights = reference.weights()
    coarse = []
    for linears in reference.linears:
        for name in linears:
            codes, scale = quantised(linears[name])
            linears[name] = (codes.float() * scale[:, None], None)
            coarse.append(pack(codes, scale=scale, gated=name == "up"))
    layers = [
        replace(layer, **dict(zip(("qkv", "out", "up", "down"), coarse[4 * i : 4 * i + 4], strict=True)))
        for i, layer in enumerate(weights.layers)
    ]
    kernel = CpuDecoder(replace(weights, layers=layers), empty_store(shape, torch.float32))
    x = reference.random(11, HIDDEN)
    found, expected = kernel.forward(x.clone(), batch_of([(0, 11, [0, 1, 2], 0)]), 2), reference.forward(x)
    torch.testing.assert_close(found.double(), expected, atol=0.1 * float(expected.std()), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_rows_of_packed_weights_can_be_read(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = (torch.randn(75, 22, generator=generator) * 40).clamp(-127, 127).to(dtype)
    scale = torch.rand(75, generator=generator) if dtype == torch.int8 else None
    index = torch.tensor([0, 74, 31, 32, 17, 17])
    expected = weight[index].float() * (1.0 if scale is None else scale[index, None])
    assert torch.equal(pack(weight, scale=scale).rows(index), expected)


def test_weights_that_cannot_be_packed_are_refused() -> None:
    with pytest.raises(ValueError, match="even number of inputs"):
        pack(torch.zeros(4, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"torch\.float16"):
        pack(torch.zeros(4, 4, dtype=torch.float16))
