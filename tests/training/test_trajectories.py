"""The bank of paths: a path is its own, and jumps lead along it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from service.training.trajectories import LEGS, Captions, PathStarts, TrajectoryBank, guided_velocity, path_times

GUIDANCE = (1.0, 4.0)


class Pull(nn.Module):
    """A velocity with a known flow: dx/dt = caption, whatever x is; the empty caption has none."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, text: Tensor) -> Tensor:
        assert torch.equal(t, s) and (guidance == 1).all()
        return torch.ones_like(x) * text[:, :1, None, None]


def captions(first: int, count: int) -> Captions:
    text = torch.arange(first, first + count)[:, None] % 7 + 1
    return Captions(torch.nn.functional.pad(text, (0, 2)), torch.zeros(count, 3, dtype=torch.int64))


def bank(capacity: int = 32, seed: int = 0) -> TrajectoryBank:
    return TrajectoryBank(partial(guided_velocity, Pull()), PathStarts(captions, (3, 4, 4), 5, GUIDANCE, seed), capacity)


def test_a_jump_along_a_path_has_the_guided_velocity_of_its_teacher() -> None:
    paths = bank()
    paths.advance(32)
    jumps = paths.draw(500, torch.Generator().manual_seed(1))
    assert ((jumps.t > jumps.s) & (jumps.s >= 0) & (jumps.t <= 1)).all() and jumps.text.shape == (500, 1)
    assert ((jumps.guidance >= 1) & (jumps.guidance <= 4)).all()
    expected = (jumps.guidance * jumps.text[:, 0]).view(-1, 1, 1, 1).expand_as(jumps.x)
    torch.testing.assert_close(jumps.velocity, expected, atol=1e-2, rtol=1e-3)
    assert (jumps.t - jumps.s).min() > 1e-3
    assert ((jumps.t == 1) & (jumps.s == 0)).sum() > 50


def test_a_bank_that_begins_late_holds_the_paths_of_one_that_was_there_all_along() -> None:
    old, late = bank(), bank()
    for end in range(0, 100, 8):
        old.advance(end)
    late.advance(96)
    for name in ("points", "times", "guidance", "text"):
        assert torch.equal(getattr(old, name), getattr(late, name))
    assert not torch.equal(old.points, bank(seed=1).points)


def test_times_fall_from_one_to_zero_and_half_the_paths_share_a_grid() -> None:
    times = path_times(200, torch.Generator().manual_seed(0))
    assert (times[:, 0] == 1).all() and (times[:, -1] == 0).all() and (times.diff(dim=1) < 0).all()
    even = torch.linspace(1, 0, LEGS + 1)
    shared = (times - 3 * even / (1 + 2 * even)).abs().amax(1) < 1e-6
    assert 70 < int(shared.sum()) < 130


def test_paths_that_end_wrong_give_their_places_to_right_ones_of_their_batch() -> None:
    everything, some = bank(), bank()
    some.right = lambda first, ends: [first == 0 and i in (3, 5) for i in range(len(ends))]
    everything.advance(32)
    some.advance(32)
    assert torch.equal(some.points[:16], everything.points[[3, 5] * 8])
    assert torch.equal(some.text[:16], everything.text[[3, 5] * 8]) and torch.equal(some.times[:16], everything.times[[3, 5] * 8])
    assert torch.equal(some.points[16:], everything.points[16:]), "a batch without a right one stays as it is"


def test_a_capacity_that_batches_do_not_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="33 paths"):
        bank(33)


def test_guidance_is_made_on_the_device_that_the_teacher_is_on() -> None:
    meta = torch.device("meta")
    at = [torch.zeros(shape, device=meta) for shape in ((2, 3, 8, 8), (2,), (2,))]
    text = torch.zeros(2, 5, dtype=torch.int64, device=meta)

    def teacher(x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, text: Tensor) -> Tensor:
        return x * (t + guidance).view(-1, 1, 1, 1)

    assert guided_velocity(teacher, *at, Captions(text, text)).device == meta  # type: ignore[arg-type]
