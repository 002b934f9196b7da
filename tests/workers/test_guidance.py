"""Outputs with and without the text, and how far their spread is brought back."""

from __future__ import annotations

import pytest
import torch

from kernels.sampler_update import sampler_step
from service.procedures.picture_rows import LatentRow
from service.workers.guidance import guided, rescaled, to_be_guided
from tests.latent_networks import ToyNetwork


def row(guidance: float, paired: bool, rescale: float = 0.0) -> LatentRow:
    return LatentRow(0, 1.0, 0.5, (1.0, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0), guidance, False, 0, paired, rescale)


def test_only_paired_rows_change_and_each_by_its_own_scale() -> None:
    out = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    rows = [row(3.0, True), row(3.0, False), row(0.5, True)]
    f = guided(ToyNetwork(), rows, out)
    assert torch.allclose(f[0], out[3] + 3.0 * (out[0] - out[3]))
    assert torch.equal(f[1], out[1])
    assert torch.allclose(f[2], out[4] + 0.5 * (out[2] - out[4]))


def test_what_the_sampler_step_is_left_to_guide_comes_out_the_same() -> None:
    out = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    rows = [row(3.0, False), row(2.0, True), row(0.5, True)]
    f, guidance = to_be_guided(ToyNetwork(), rows, out)
    assert guidance is not None
    zeros, only_f = torch.zeros_like(f), torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]] * 3)
    assert torch.equal(sampler_step(zeros, f, zeros, zeros, only_f, guidance=guidance).x, guided(ToyNetwork(), rows, out))


class Own(ToyNetwork):
    own_guidance = True


@pytest.mark.parametrize(
    ("network", "rows"),
    [(Own(), [row(2.0, True)]), (ToyNetwork(), [row(2.0, True, rescale=0.5)]), (ToyNetwork(), [row(2.0, False)])],
)
def test_guidance_of_another_kind_and_its_rescaling_are_done_before(network: ToyNetwork, rows: list[LatentRow]) -> None:
    out = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    f, guidance = to_be_guided(network, rows, out)
    assert guidance is None and torch.equal(f, guided(network, rows, out))


def test_the_spread_is_brought_back_as_diffusers_does() -> None:
    pipelines = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    generator = torch.Generator().manual_seed(1)
    combined, conditional = (torch.randn(3, 4, 8, 8, generator=generator) * scale for scale in (5.0, 1.0))
    shares = torch.tensor([0.0, 0.3, 1.0])
    ours = rescaled(combined, conditional, shares)
    for i, share in enumerate(shares.tolist()):
        theirs = pipelines.rescale_noise_cfg(combined[i : i + 1], conditional[i : i + 1], guidance_rescale=share)
        assert torch.allclose(ours[i : i + 1], theirs, atol=1e-6)
    assert torch.equal(ours[0], combined[0])


def test_an_output_that_is_the_same_everywhere_stays_finite() -> None:
    flat = torch.full((1, 2, 4, 4), 0.5)
    assert torch.equal(rescaled(flat, torch.randn(1, 2, 4, 4), torch.tensor([0.7])), flat)
