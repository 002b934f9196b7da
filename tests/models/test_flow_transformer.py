"""The flow transformer: a row depends on nothing but itself."""

from __future__ import annotations

import json

import pytest
import torch

from service.models.flow_transformer import FlowTransformer, FlowTransformerConfig


@pytest.fixture(scope="module")
def network() -> FlowTransformer:
    torch.manual_seed(0)
    network = FlowTransformer(FlowTransformerConfig(vocab_size=20, width=64, depth=2, heads=2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network.eval()


def inputs(rows: int, tokens: int = 6) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    t = torch.rand(rows, generator=generator)
    return (
        torch.randn(rows, 3, 32, 32, generator=generator),
        t,
        t * torch.rand(rows, generator=generator),
        1 + 5 * torch.rand(rows, generator=generator),
        torch.randint(2, 20, (rows, tokens), generator=generator),
    )


@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(network: FlowTransformer) -> None:
    batch = inputs(5)
    together = network(*batch)
    for row in range(5):
        alone = network(*(part[row : row + 1] for part in batch))
        torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_row_does_not_depend_on_its_padding(network: FlowTransformer) -> None:
    x, t, s, guidance, text = inputs(3)
    padded = torch.cat([text, torch.full((3, 5), network.config.pad_token_id)], dim=1)
    torch.testing.assert_close(network(x, t, s, guidance, padded), network(x, t, s, guidance, text), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_every_argument_matters(network: FlowTransformer) -> None:
    x, t, s, guidance, text = inputs(2)
    output = network(x, t, s, guidance, text)
    assert output.shape == x.shape and output.dtype == x.dtype
    for changed in ((x, t, s * 0.5, guidance, text), (x, t, s, guidance + 1, text), (x, t, s, guidance, text.flip(1))):
        assert (network(*changed) - output).abs().max() > 1e-3


@pytest.mark.parametrize("margin", [0, 4])
@torch.no_grad()
def test_a_patch_sees_its_pixels_and_its_margin(margin: int) -> None:
    """Row 1, column 2 of patches of 8 pixels: the only changed pixels are just inside, then just outside of what it sees."""
    network = FlowTransformer(FlowTransformerConfig(vocab_size=20, width=64, depth=1, heads=2, patch_margin=margin))
    dark = torch.zeros(1, 3, 32, 32)

    def seen(row: int, column: int) -> bool:
        lit = dark.clone()
        lit[0, 1, row, column] = 1.0
        return not torch.equal(network.patches(lit)[0, 1 * 4 + 2], network.patches(dark)[0, 1 * 4 + 2])

    assert all(seen(*at) for at in ((8 - margin, 20), (15 + margin, 20), (12, 16 - margin), (12, 23 + margin)))
    assert not any(seen(*at) for at in ((7 - margin, 20), (16 + margin, 20), (12, 15 - margin), (12, 24 + margin)))


@torch.no_grad()
def test_the_output_is_finite_at_both_ends_of_time(network: FlowTransformer) -> None:
    x, _, _, guidance, text = inputs(2)
    for t in (0.0, 1.0):
        times = torch.full((2,), t)
        assert torch.isfinite(network(x, times, torch.zeros(2), guidance, text)).all()


def test_a_configuration_survives_json() -> None:
    config = FlowTransformerConfig(vocab_size=20, width=64, depth=2, heads=2, guidance_range=(1.0, 4.0))
    assert FlowTransformerConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("change", [{"model_type": "qwen3"}, {"widht": 3}, {"patch_size": 5}, {"patch_margin": -1}, {"heads": 3}])
def test_a_wrong_configuration_is_refused(change: dict[str, object]) -> None:
    json_config = FlowTransformerConfig(vocab_size=20, width=64, depth=2, heads=2).to_json()
    with pytest.raises(ValueError):
        FlowTransformerConfig.from_json(json_config | change)
