"""A decoder's weights in the CPU kernel's form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.cpu import CpuDecoder, DecoderWeights, LayerWeights, Norm, PackedBatch, PackedLinear, has_heads_of, library, pack
from service.models.decoder import Decoder, DecoderLayer, FeedForward
from service.models.normalisation import LayerNorm, RMSNorm
from service.models.rope import Rope
from service.models.weight_only import Fp8Linear, Int8Linear

MOST_ROPES = 4


class KernelDecoder:
    """Token ids or vectors in, logits and hidden states out, over a store of keys and values; see `kernels.cpu.CpuDecoder`.

    Takes the layers and the head out of the network as it packs them, so that no weight is held twice.
    """

    def __init__(self, network: Decoder, store: Tensor, shared: KernelDecoder | None = None) -> None:
        """The embeddings and the head are those of `shared`, where the network has none of its own."""
        config = network.config
        frequencies = [_frequencies(rope, config.head_dim) for rope in network.ropes]
        layers = []
        for i, layer in enumerate(network.model.layers):
            assert isinstance(layer, DecoderLayer)
            layers.append(_layer(layer, network, frequencies))
            network.model.layers[i] = nn.Identity()
        tied = config.tie_word_embeddings
        self._head: PackedLinear
        self._tokens: PackedLinear | Tensor
        if shared is not None:
            self._head, self._tokens = shared._head, shared._tokens
        else:
            self._head = pack(network.model.embed_tokens.weight) if tied else _packed(network.lm_head)
            self._tokens = self._head if tied else network.model.embed_tokens.weight.detach()
        self._positions = network.model.embed_positions.weight.detach() if config.learned_positions else None
        self._scale = torch.tensor(config.embedding_scale, dtype=network.dtype).float()
        if tied:
            network.model.embed_tokens.weight = nn.Parameter(torch.empty(0, dtype=network.dtype), requires_grad=False)
        else:
            del network.lm_head
        self._kernel = CpuDecoder(_weights(network, layers, self._head), store)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens int64 [N] -> float32 [N, hidden], a new tensor; learned positions are not yet in it."""
        x = self._tokens.rows(tokens) if isinstance(self._tokens, PackedLinear) else self._tokens[tokens].float()
        return x * self._scale

    def forward(self, x: Tensor, batch: PackedBatch, threads: int, states: bool = False) -> tuple[Tensor, Tensor]:
        """x float32 [N, hidden], embeddings or what stands in for them at the batch's positions -> logits float32
        [W, vocabulary] of the wanted ones, and float32 [N, hidden]: with `states` the final normed hidden states, else
        what the last layer leaves before that norm. x may be overwritten."""
        if self._positions is not None:
            x = x + self._positions[batch.positions].float()
        return self._kernel.forward(x, batch, threads, states), x


def kernel_decoder(network: Decoder, store: Tensor, shared: KernelDecoder | None = None) -> KernelDecoder | None:
    """The network in the kernel's form, or None where there is no kernel for it here; then the network is as before. It has
    the embeddings and the head of `shared`, if that is given."""
    config = network.config
    dims = {rope.dim or config.head_dim for rope in network.ropes}
    inputs = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    wide = network.dtype == torch.float32
    quantised = any(isinstance(module, Int8Linear) for module in network.modules())
    able = (
        store.device.type == "cpu"
        and network.dtype in (torch.float32, torch.bfloat16)
        and not (wide and quantised)
        and not any(isinstance(module, Fp8Linear) for module in network.modules())
        and (wide or all(size % 2 == 0 for size in inputs))
        and config.experts is None
        and len({*config.widths(), (config.num_key_value_heads, config.head_dim)}) == 1
        and not any(layer.keys_as_values for layer in config.layers)
        and not (config.value_norm or config.layer_scales or config.canvas_window or config.self_conditioning)
        and config.activation in ("silu", "gelu", "gelu_tanh", "relu")
        and len(dims) <= 1
        and len(network.ropes) <= MOST_ROPES
        and has_heads_of(config.head_dim)
        and library() is not None
    )
    return KernelDecoder(network, store, shared) if able else None


def _weights(network: Decoder, layers: list[LayerWeights], head: PackedLinear) -> DecoderWeights:
    config = network.config
    return DecoderWeights(
        layers=layers,
        last=_norm(network.model.norm),
        head=head,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rotary_size=next((rope.dim or config.head_dim for rope in network.ropes), 0),
        intermediate=config.intermediate_size,
        epsilon=config.norm_eps,
        attention_scale=config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale,
        activation=config.activation,
        gated=config.gated,
        centred=config.norm == "layer",
        logit_softcap=config.logit_softcap or 0.0,
    )


def _layer(layer: DecoderLayer, network: Decoder, frequencies: list[Tensor]) -> LayerWeights:
    config, attention, mlp = network.config, layer.self_attn, layer.mlp
    assert isinstance(mlp, FeedForward)
    rope = attention.rope
    normed = config.qk_norm != "none"
    return LayerWeights(
        qkv=_packed(attention.qkv_proj),
        out=_packed(attention.o_proj),
        up=_packed(mlp.gate_up_proj, gated=True) if config.gated else _packed(mlp.up_proj),
        down=_packed(mlp.down_proj),
        before_attention=_norm(layer.input_layernorm),
        after_attention=_norm(layer.attention_output_norm),
        before_mlp=_norm(layer.post_attention_layernorm),
        after_mlp=_norm(layer.mlp_output_norm),
        query_norm=_norm(attention.q_norm) if normed else None,
        key_norm=_norm(attention.k_norm) if normed else None,
        frequencies=None if rope is None else frequencies[rope],
        rotary_factor=1.0 if rope is None else network.ropes[rope].amplitude,
        window=config.layers[attention.layer].window or 0,
        softcap=config.attention_softcap or 0.0,
        norm_whole=config.qk_norm == "full",
    )


def _packed(linear: nn.Module | None, gated: bool = False) -> PackedLinear:
    assert isinstance(linear, nn.Linear | Int8Linear)
    scale = linear.scale if isinstance(linear, Int8Linear) else None
    return pack(linear.weight.detach(), linear.bias, scale, gated)


def _norm(norm: nn.Module | None) -> Norm | None:
    if norm is None or isinstance(norm, nn.Identity):
        return None
    assert isinstance(norm, RMSNorm | LayerNorm)
    bias = norm.bias.detach().float().contiguous() if isinstance(norm, LayerNorm) else None
    assert norm.weight is not None
    return Norm(norm.weight.detach().float().contiguous(), bias)


def _frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Radians a position, float32 [dim / 2]."""
    dim = rope.dim or head_dim
    frequencies = 1.0 / rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    return frequencies / torch.tensor(rope.factors) if rope.factors else frequencies
