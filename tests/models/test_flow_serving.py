"""The C++ flow transformer against the network itself."""

from __future__ import annotations

import copy

import pytest
import torch

from kernels.cpu import library
from service.models.flow_serving import KernelFlow, TorchFlow, flow_evaluator
from service.models.flow_transformer import FlowTransformer, FlowTransformerConfig

needs_kernel = pytest.mark.skipif(library() is None, reason="the CPU kernels need AVX-512 with bfloat16, and g++")


def network(**shape: int) -> FlowTransformer:
    torch.manual_seed(0)
    network = FlowTransformer(FlowTransformerConfig(vocab_size=20, **{"width": 64, "depth": 3, "heads": 2, **shape}))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network.eval().requires_grad_(False)


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[list[int]]]:
    generator = torch.Generator().manual_seed(rows)
    t = torch.rand(rows, generator=generator)
    captions = [torch.randint(2, 20, (1 + 5 * i % 16,), generator=generator).tolist() for i in range(rows)]
    x = torch.randn(rows, 3, 32, 32, generator=generator)
    return x, t, t * torch.rand(rows, generator=generator), 1 + 3 * torch.rand(rows, generator=generator), captions


@needs_kernel
@torch.inference_mode()
@pytest.mark.parametrize(
    "shape", [{}, {"width": 192, "heads": 3, "patch_size": 4, "patch_margin": 4}, {"mlp_ratio": 2, "depth": 1}]
)
def test_the_kernel_agrees_with_the_network(shape: dict[str, int]) -> None:
    plain = network(**shape)
    for rows in (1, 7):
        expected = TorchFlow(plain)(*inputs(rows))
        exact = KernelFlow(copy.deepcopy(plain), 2)(*inputs(rows))
        torch.testing.assert_close(exact, expected, atol=2e-4, rtol=1e-4)
        half = copy.deepcopy(plain).bfloat16()
        rounding = (TorchFlow(half)(*inputs(rows)) - expected).abs().mean()
        coarse = KernelFlow(half, 2)(*inputs(rows))
        assert (coarse - expected).abs().mean() < 1.2 * rounding


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_batch_or_its_neighbours_captions() -> None:
    evaluate = flow_evaluator(network(), 2)
    x, t, s, guidance, captions = inputs(5)
    together = evaluate(x, t, s, guidance, captions)
    for i in range(5):
        one = slice(i, i + 1)
        alone = evaluate(x[one], t[one], s[one], guidance[one], captions[one])
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_shape_that_the_kernel_lacks_runs_in_torch() -> None:
    small = network(width=16, heads=2)
    assert isinstance(flow_evaluator(small, 1), TorchFlow)
    assert hasattr(small, "blocks")


@needs_kernel
@torch.inference_mode()
@pytest.mark.parametrize("name", ["blocks.0.qkv.weight", "blocks.2.up.weight", "decode_up.bias", "patch_embed.bias"])
def test_what_is_not_a_number_is_never_hidden(name: str) -> None:
    broken = network()
    broken.get_parameter(name)[3].fill_(float("nan"))
    assert not torch.isfinite(KernelFlow(broken, 2)(*inputs(3))).all()
