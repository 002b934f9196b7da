"""Jumps from a map's own states: they begin where its jumps led and end where the velocity leads from there."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from service.training.own_jumps import TAUGHT_BELOW, OwnJumps
from service.training.trajectories import Captions, PathStarts, TrajectoryBank

Z = 0.5
"""A velocity that leads from any state straight to a picture of this everywhere: dx/dt = (x - Z) / t."""


def velocity(x: Tensor, t: Tensor, guidance: Tensor, captions: Captions) -> Tensor:
    return (x - Z) / t.view(-1, 1, 1, 1)


class Exact(nn.Module):
    def forward(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, text: Tensor) -> Tensor:
        return (x - Z) / t.view(-1, 1, 1, 1)


class Wrong(nn.Module):
    """A map that stands still."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, text: Tensor) -> Tensor:
        return torch.zeros_like(x)


def captions(first: int, count: int) -> Captions:
    text = (torch.arange(count) + first)[:, None] % 7 + 1
    return Captions(text, torch.zeros_like(text))


def own(network: nn.Module, capacity: int = 96) -> OwnJumps:
    return OwnJumps(network, velocity, PathStarts(captions, (3, 4, 4), 5, (1.0, 4.0), 3), capacity)


def test_a_map_that_goes_wrong_is_taught_from_where_it_has_come_to() -> None:
    jumps = own(Wrong())
    jumps.advance(96)
    for batch, missed in jumps.batches:
        assert len(batch.t) == len(missed) >= 16 and (batch.t > batch.s).all()
        assert (batch.s == 0).sum() == 16, "the last jump of each is there, and none of the noisy ones before"
        assert ((batch.t < TAUGHT_BELOW) | (batch.s == 0)).all()
        noise = batch.x[batch.s == 0]
        assert torch.isclose(batch.x[:, None], noise).flatten(2).all(2).any(1).all(), "it stood still"
        share = (batch.s / batch.t).view(-1, 1, 1, 1)
        torch.testing.assert_close(batch.end, Z + share * (batch.x - Z), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(missed, (batch.x - batch.end).square().mean((1, 2, 3)))
    assert len({len(missed) for _, missed in jumps.batches}) > 1, "in different numbers of jumps"


def test_a_map_that_is_right_stays_on_its_path() -> None:
    jumps = own(Exact())
    jumps.advance(32)
    drawn = jumps.draw(200, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.velocity, (drawn.x - Z) / drawn.t.view(-1, 1, 1, 1), atol=1e-4, rtol=1e-3)
    assert all(missed.max() < 1e-8 for _, missed in jumps.batches)
    assert ((drawn.guidance >= 1) & (drawn.guidance <= 4)).all()


def test_jumps_that_missed_are_drawn_more_often() -> None:
    class Late(nn.Module):
        """Right, but for the last jump of every picture."""

        def forward(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, text: Tensor) -> Tensor:
            return (x - Z) / t.view(-1, 1, 1, 1) * (s > 0).view(-1, 1, 1, 1)

    jumps = own(Late())
    jumps.advance(96)
    everything = torch.cat([batch.s for batch, _ in jumps.batches])
    drawn = jumps.draw(2000, torch.Generator().manual_seed(0))
    wrong, others = float((everything == 0).float().mean()), float((drawn.s == 0).float().mean())
    assert wrong < 0.4 and abs(others - (wrong + 1) / 2) < 0.05, "half of them are any, half of them missed"


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
    asked: list[int] = []

    def noted(first: int, count: int) -> Captions:
        asked.append(first)
        return captions(first, count)

    starts = PathStarts(noted, (3, 4, 4), 5, (1.0, 4.0), 3)
    bank, jumps = TrajectoryBank(velocity, starts, 32), OwnJumps(Wrong(), velocity, starts, 32)
    bank.advance(32)
    jumps.advance(32)
    assert len(set(asked)) == 4
    states = torch.cat([batch.x for batch, _ in jumps.batches])
    assert not torch.isclose(states[:, None], bank.points[None, :, 0]).flatten(2).all(2).any()
