"""Muon in a number format of one's choice: the update that torch's computes in bfloat16."""

from __future__ import annotations

import torch
from torch import nn

from service.training.muon import Muon, orthogonalised


def test_a_matrix_is_orthogonalised() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((24, 64), (64, 24), (32, 32)):
        found = orthogonalised(torch.randn(shape, generator=generator), torch.float32)
        assert found.shape == shape
        values = torch.linalg.svdvals(found)
        assert values.max() < 1.3 and values.median() > 0.6


def test_steps_are_those_of_torch_up_to_its_number_format() -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(24, 40, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = Muon([ours], rate=0.02, weight_decay=0.1, dtype=torch.bfloat16)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        gradient = torch.randn(24, 40, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    moved = (theirs - start).abs().mean()
    assert (ours - theirs).abs().mean() < 0.02 * moved
    exact = Muon([nn.Parameter(start.clone())], rate=0.02, weight_decay=0.1, dtype=torch.float32)
    exact.load_state_dict(mine.state_dict())
    assert torch.equal(next(iter(exact.state.values()))["momentum_buffer"], next(iter(mine.state.values()))["momentum_buffer"])
