"""The decoder agrees with transformers' Qwen3ForCausalLM on the same checkpoint, in both directions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from service.models.decoder import Decoder, DecoderConfig
from service.models.families import read_config
from service.training.block_diffusion_objective import DenseAttention

transformers = pytest.importorskip("transformers")


def small_config(**changes: object) -> DecoderConfig:
    values = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
    }
    return DecoderConfig(**{**values, **changes})  # type: ignore[arg-type]


def random_decoder(config: DecoderConfig) -> Decoder:
    generator = torch.Generator().manual_seed(3)
    decoder = Decoder(config).eval()
    decoder.initialise(generator)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return decoder


def our_logits(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    rows, length = tokens.shape
    attention = DenseAttention(rows, length, decoder.config.sliding_window)
    hidden = decoder.hidden(tokens.reshape(-1), torch.arange(length).repeat(rows), attention)
    return decoder.logits(hidden).view(rows, length, -1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "tie_word_embeddings": False, "head_dim": 32},
        {"sliding_window": 7},
        {"sliding_window": 5, "num_key_value_heads": 2, "rope_theta": 1e6},
    ],
    ids=["plain", "grouped", "single-kv-untied-wide", "window", "window-grouped"],
)
def test_logits_equal_those_of_transformers_for_the_same_folder(tmp_path: Path, changes: dict[str, object]) -> None:
    decoder = random_decoder(small_config(**changes))
    save_file(decoder.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(decoder.config.to_json()))
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    assert type(reference).__name__ == "Qwen3ForCausalLM"
    tokens = torch.randint(97, (2, 33), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(our_logits(decoder, tokens), reference(tokens).logits, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_of_transformers_loads_with_its_own_names_and_config() -> None:
    config = transformers.Qwen3Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    reference = transformers.Qwen3ForCausalLM(config).eval()
    decoder = Decoder(read_config(config.to_dict())).eval()
    decoder.load_state_dict(reference.state_dict())
    tokens = torch.randint(97, (1, 20), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(our_logits(decoder, tokens), reference(tokens).logits, atol=1e-4, rtol=1e-4)


def test_config_survives_a_round_trip_through_json() -> None:
    config = small_config(sliding_window=9, mask_token_id=96, block_lengths=(4, 8), eos_token_id=1, bos_token_id=2)
    assert read_config(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gpt9"},
        {"hidden_act": "xielu"},
        {"rope_scaling": {"rope_type": "yarn"}},
        {"layer_types": ["full_attention", "chunked_attention", "sliding_attention"]},
    ],
)
def test_config_refuses_what_the_decoder_does_not_compute(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        read_config({**small_config(sliding_window=9).to_json(), **changes})
