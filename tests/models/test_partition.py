"""What ranks hold of a checkpoint's tensors is, together, all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from service.models.decoder import Decoder
from service.models.decoder_config import DecoderConfig, ExpertsConfig, LayerConfig
from service.models.filling import Share, places
from service.models.parallel_decoder import divided, shares
from service.models.partition import Partition
from service.models.rope import Rope

PLAIN = DecoderConfig(
    vocab_size=37, hidden_size=12, intermediate_size=22, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4,
    head_dim=4,
)  # fmt: skip
ALIKE = LayerConfig(None, Rope())
CONFIGS = {
    "plain": PLAIN,
    "untied with biases": replace(PLAIN, tie_word_embeddings=False, qkv_bias=True, attention_output_bias=True, mlp_bias=True),
    "norms over all heads": replace(PLAIN, qk_norm="full"),
    "without gates": replace(PLAIN, gated=False, mlp_bias=True, norm="layer", learned_positions=True),
    "few heads of keys": replace(PLAIN, num_key_value_heads=2),
    "layers of other heads": replace(
        PLAIN, layers=(replace(ALIKE, kv_heads=1, head_dim=8, keys_as_values=True), ALIKE), value_norm=True, layer_scales=1
    ),
    "experts": replace(
        PLAIN,
        layers=(ALIKE, replace(ALIKE, experts=True)),
        experts=ExpertsConfig(3, 2, 10, normalise=True, biased=True, shared_size=5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_number_of_a_tensor_is_held_and_only_those_of_whole_tensors_and_shared_keys_by_several(
    name: str, size: int
) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        whole = Decoder(config)
    whole.fuse()
    held = {tensor: torch.zeros(place.shape, dtype=torch.int64) for tensor, place in places(whole).items()}
    cut = set()
    for rank in range(size):
        for tensor, share in shares(divided(whole, Partition(rank, size)), whole).items():
            assert isinstance(share, Share)
            numbers = torch.arange(held[tensor].numel()).view(share.shape)
            own = share.of(numbers)
            if share.place is not None:
                assert own.shape == share.place.shape, tensor
                held[tensor].view(-1)[own.flatten()] += 1
            if share.cut is not None:
                cut.add(tensor)
    for tensor, count in held.items():
        assert count.min() >= 1, tensor
        few = tensor in cut and any(part in tensor for part in ("k_proj", "v_proj", "qkv_proj"))
        if tensor in cut and not few:
            assert count.max() == 1, tensor
        elif few:
            assert count.max() <= size // min(size, *(heads for heads, _ in config.widths())), tensor
    matrices = {tensor for tensor, count in held.items() if count.ndim > 1 and "norm" not in tensor}
    assert matrices - cut <= {"model.embed_positions.weight", "model.layers.1.mlp.gate.weight"}


@pytest.mark.parametrize(
    "config,size,message",
    [
        (PLAIN, 3, "num_attention_heads, 8, is not a multiple of 3"),
        (replace(PLAIN, num_attention_heads=12, num_key_value_heads=6), 4, "num_key_value_heads, 6, is neither"),
        (replace(PLAIN, intermediate_size=3), 4, "intermediate_size, 3, is less than 4"),
        (replace(PLAIN, vocab_size=7), 8, "vocab_size, 7, is less than 8"),
        (replace(PLAIN, experts=ExpertsConfig(3, 2, 3, True)), 4, "moe_intermediate_size, 3, is less than 4"),
        (replace(PLAIN, self_conditioning=True), 2, "self_conditioning"),
    ],
)
def test_a_decoder_that_cannot_be_divided_names_the_field(config: DecoderConfig, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Partition(0, size).config(config)


def test_a_cut_of_one_range_is_a_view() -> None:
    """So that a rank reads no more than its part of a mapped file."""
    tensor = torch.arange(32.0).view(8, 4)
    cut = Partition(1, 2).cut("model.layers.0.self_attn.o_proj.weight", (8, 32), PLAIN)
    assert cut is not None and cut.ranges == ((16, 32),) and cut.dim == 1
    rows = Partition(1, 2).cut("model.embed_tokens.weight", (8, 4), PLAIN)
    assert rows is not None
    assert rows.of(tensor).data_ptr() == tensor[4].data_ptr()
