"""Networks whose norms, gates and sums are fused kernels compute what they do in plain torch."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch

from kernels.dispatch import TRITON_IS_THERE, prefer_triton
from service.models.decoder import Decoder, DecoderConfig, Experts, FeedForward
from service.models.decoder_config import ExpertsConfig
from service.models.dit import Block, DitConfig
from service.models.flow_transformer import FlowTransformer, FlowTransformerConfig
from service.models.model_spec import Quantization
from service.models.weight_only import WeightOnlyLinear, quantise
from service.training.block_diffusion_objective import DenseAttention
from service.workers.batch_invariant import make_batch_invariant

pytestmark = pytest.mark.skipif(
    not TRITON_IS_THERE or torch.cuda.is_available(), reason="tensors of a CPU need Triton's interpreter"
)
FUNCTIONS = {
    "rms_norm": "normalised", "swiglu": "gated", "modulation": "modulate", "grouped_product": "grouped_product",
    "weight_only": "weight_only",
}  # fmt: skip


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel ran."""
    counted = Counter[str]()
    for kernel, name in FUNCTIONS.items():
        module = import_module(f"kernels.{kernel}.triton_kernel")
        monkeypatch.setattr(module, name, _counting(kernel, getattr(module, name), counted))
    return counted


def _counting(kernel: str, run: Callable[..., Any], counted: Counter[str]) -> Callable[..., Any]:
    def counting(*arguments: Any, **named: Any) -> Any:
        counted[kernel] += 1
        return run(*arguments, **named)

    return counting


def stirred(network: torch.nn.Module) -> Any:
    generator = torch.Generator().manual_seed(1)
    if isinstance(network, Decoder):
        network.initialise(generator)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


DECODERS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "gemma": {"norms": "both", "activation": "gelu_tanh", "qk_norm": "none", "layer_scales": 1, "value_norm": True},
    "olmo": {"norms": "post", "qk_norm": "full", "mlp_bias": True},
    "gpt2": {"norm": "layer", "gated": False, "activation": "gelu_tanh", "qk_norm": "none", "learned_positions": True},
}


@pytest.mark.parametrize("name", DECODERS)
@torch.inference_mode()
def test_a_decoder(name: str, runs: Counter[str]) -> None:
    config = DecoderConfig(
        vocab_size=30, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, **DECODERS[name],
    )  # fmt: skip
    decoder = stirred(Decoder(config))
    decoder.fuse()
    tokens, positions = torch.randint(30, (5,), generator=torch.Generator().manual_seed(2)), torch.arange(5)
    expected = decoder.hidden(tokens, positions, DenseAttention(1, 5, None))
    assert not runs
    with prefer_triton():
        torch.testing.assert_close(decoder.hidden(tokens, positions, DenseAttention(1, 5, None)), expected, atol=1e-5, rtol=1e-5)
    assert runs["rms_norm"] >= 5 and runs["swiglu"] == (2 if config.gated else 0)


def mixture(**changes: Any) -> Experts:
    config = DecoderConfig(
        vocab_size=9, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, experts=ExpertsConfig(count=5, per_token=2, intermediate_size=16, normalise=True, shared_size=8), **changes,
    )  # fmt: skip
    experts = stirred(Experts(config))
    for module in experts.modules():
        if isinstance(module, FeedForward):
            module.fuse()
    return experts


def in_8_bits(experts: Experts, quantization: Quantization) -> None:
    exact = {name: module for name, module in experts.named_modules() if isinstance(module, torch.nn.Linear)}
    quantise(experts, quantization)
    for name, module in experts.named_modules():
        if isinstance(module, WeightOnlyLinear):
            module.quantise(0, exact[name].weight)


@pytest.mark.parametrize("quantization", [None, "int8", "fp8"])
@pytest.mark.parametrize("changes", [{}, {"mlp_bias": True}, {"gated": False, "activation": "relu"}], ids=str)
@torch.inference_mode()
def test_a_mixture_of_experts(changes: dict[str, Any], quantization: Quantization | None, runs: Counter[str]) -> None:
    experts = mixture(**changes)
    if quantization is not None:
        in_8_bits(experts, quantization)
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(3))
    expected = experts(x)
    assert not runs
    with prefer_triton():
        for rows in (slice(0, 7), slice(2, 3)):
            torch.testing.assert_close(experts(x[rows]), expected[rows], atol=1e-5, rtol=1e-5)
    assert runs["grouped_product"] == 4 and runs["weight_only"] == (0 if quantization is None else 4)


@torch.inference_mode()
def test_experts_that_moved_are_found_again_and_those_in_tiles_are_left_alone(runs: Counter[str]) -> None:
    experts, x = mixture(), torch.randn(3, 24, generator=torch.Generator().manual_seed(4))
    with prefer_triton():
        experts(x)
        twice = copy.deepcopy(experts)
        for parameter in twice.experts.parameters():
            parameter.data = parameter.data * 2.0
        result = twice(x)
    torch.testing.assert_close(result, twice(x), atol=1e-5, rtol=1e-5)
    ran = runs["grouped_product"]
    make_batch_invariant(twice)
    with prefer_triton():
        twice(x)
    assert ran == 4 and runs["grouped_product"] == ran


@torch.inference_mode()
def test_a_block_of_a_class_conditional_transformer(runs: Counter[str]) -> None:
    config = DitConfig(layout="dit", depth=1, width=48, heads=3, patch_size=2, learn_sigma=True, data_time=0, mlp_norm_eps=1e-3)
    block = stirred(Block(config, own_embedders=False))
    x, condition = torch.randn(2, 5, 48), torch.randn(2, 48)
    expected = block(x, condition)
    with prefer_triton():
        torch.testing.assert_close(block(x, condition), expected, atol=1e-5, rtol=1e-5)
    assert runs["modulation"] == 3


@torch.inference_mode()
def test_a_flow_transformer(runs: Counter[str]) -> None:
    network = stirred(FlowTransformer(FlowTransformerConfig(vocab_size=20, image_size=16, width=32, depth=2, heads=2)))
    t = torch.rand(2)
    inputs = torch.randn(2, 3, 16, 16), t, t * 0.5, 1 + t, torch.randint(2, 20, (2, 3))
    expected = network(*inputs)
    with prefer_triton():
        torch.testing.assert_close(network(*inputs), expected, atol=2e-5, rtol=2e-5)
    assert runs["modulation"] == 7


def test_training_stays_with_torch(runs: Counter[str]) -> None:
    block = stirred(Block(DitConfig(layout="sit", depth=1, width=8, heads=2, patch_size=2, learn_sigma=True, data_time=1), False))
    with prefer_triton():
        block(torch.randn(1, 3, 8), torch.randn(1, 8)).sum().backward()
    assert not runs and all(parameter.grad is not None for parameter in block.parameters())
