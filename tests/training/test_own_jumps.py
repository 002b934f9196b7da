"""Jumps from a map's own states: they begin where its jumps led and end where the velocity leads from there."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from service.training.own_jumps import OwnJumps
from service.training.trajectories import LEGS, Captions, TrajectoryBank

Z = 0.5
"""A velocity that leads from any state straight to a picture of this everywhere: dx/dt = (x - Z) / t."""


def velocity(x: Tensor, t: Tensor, guidance: Tensor, captions: Captions) -> Tensor:
    return (x - Z) / t.view(-1, 1, 1, 1)


class Wrong(nn.Module):
    """A map that stands still."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, text: Tensor) -> Tensor:
        return torch.zeros_like(x)


def captions(first: int, count: int) -> Captions:
    text = (torch.arange(count) + first)[:, None] % 7 + 1
    return Captions(text, torch.zeros_like(text))


def own(network: nn.Module, capacity: int = 96) -> OwnJumps:
    return OwnJumps(network, velocity, captions, (3, 4, 4), 5, (1.0, 4.0), 3, capacity)


def test_a_map_that_goes_wrong_is_taught_from_where_it_has_come_to() -> None:
    jumps = own(Wrong())
    jumps.advance(96)
    for batch in jumps.batches:
        count = len(batch.t) // 16
        assert len(batch.t) == 16 * count and 2 <= count <= LEGS and (batch.t > batch.s).all()
        noise, t, s = batch.x[:16], batch.t.view(count, 16), batch.s.view(count, 16)
        assert (t[0] == 1).all() and (s[-1] == 0).all() and torch.equal(t[1:], s[:-1])
        assert torch.equal(batch.x, noise.repeat(count, 1, 1, 1)), "it stood still"
        share = (batch.s / batch.t).view(-1, 1, 1, 1)
        torch.testing.assert_close(batch.end, Z + share * (batch.x - Z), atol=1e-5, rtol=1e-4)
    assert len({len(batch.t) for batch in jumps.batches}) > 1, "in different numbers of jumps"


def test_a_map_that_is_right_stays_on_its_path() -> None:
    class Exact(nn.Module):
        def forward(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, text: Tensor) -> Tensor:
            return (x - Z) / t.view(-1, 1, 1, 1)

    jumps = own(Exact())
    jumps.advance(32)
    drawn = jumps.draw(200, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.velocity, (drawn.x - Z) / drawn.t.view(-1, 1, 1, 1), atol=1e-4, rtol=1e-3)
    for batch in jumps.batches:
        torch.testing.assert_close(batch.x[16:], batch.end[:-16], atol=1e-5, rtol=1e-4)
    assert (drawn.t < 1).sum() > 50 and ((drawn.guidance >= 1) & (drawn.guidance <= 4)).all()


def test_the_last_ones_are_kept_with_the_state_and_go_on_from_there() -> None:
    one, other = own(Wrong(), 32), own(Wrong(), 32)
    for end in range(0, 96, 8):
        one.advance(end)
    assert len(one.batches) == 2
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for jumps in (one, other):
        jumps.advance(112)
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(one.draw(64, seeds[0]).x, other.draw(64, seeds[1]).x) and one.end == other.end == 112


def test_captions_and_noise_are_not_those_of_the_paths() -> None:
    bank = TrajectoryBank(velocity, captions, (3, 4, 4), 5, (1.0, 4.0), 3, 32)
    jumps = own(Wrong(), 32)
    bank.advance(32)
    jumps.advance(32)
    starts = torch.cat([batch.x[:16] for batch in jumps.batches])
    assert not torch.isclose(starts[:, None], bank.points[None, :, 0]).flatten(2).all(2).any()
