"""Rules of `block_diffusion` against diffusers' schedulers, step by step on the same random logits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kernels.token_sampling import reference, spread
from service.procedures.block_diffusion import BlockDiffusion, BlockDiffusionParameters
from service.procedures.chance import Purpose, uniform
from service.procedures.types import Reading, TokenState
from service.procedures.uniform_noise import random_token

schedulers = pytest.importorskip("diffusers.schedulers")

VOCABULARY, MASK, PROMPT = 32, 31, (1, 2, 3)


def begin(length: int, mask: int | None, **parameters: object) -> tuple[BlockDiffusion, TokenState]:
    procedure = BlockDiffusion(BlockDiffusionParameters(block_length=length, **parameters))  # type: ignore[arg-type]
    state = TokenState(list(PROMPT), len(PROMPT), 1000, mask, seed=7, vocabulary=VOCABULARY)
    state.cached = len(PROMPT)
    return procedure, state


def logits_of(steps: int, length: int, scale: float = 2.0) -> Iterator[Tensor]:
    """Peaked to different degrees, so that every rule sometimes sets one and sometimes many."""
    generator = torch.Generator().manual_seed(length + steps)
    for _ in range(steps):
        sharpness = torch.rand(length, 1, generator=generator) * 4 * scale
        logits = torch.randn(length, VOCABULARY, generator=generator) * sharpness
        logits[:, MASK] = float("-inf")  # what a worker bans; diffusers' own schedulers may draw it
        yield logits


def step(procedure: BlockDiffusion, state: TokenState, logits: Tensor, tokens: Tensor) -> list[int]:
    """One forward with these tokens drawn; what the network sees next, or what was committed."""
    before = len(state.tokens)
    row = procedure.propose(state)[-1]
    entropy, margin = spread(logits, torch.ones(len(logits)))
    probability = logits.softmax(-1).gather(1, tokens[:, None])[:, 0]
    readings = zip(tokens.tolist(), probability.tolist(), entropy.tolist(), margin.tolist(), strict=True)
    all_readings = [Reading(t, p, entropy=h, margin=m) for t, p, h, m in readings]
    procedure.fold(state, [all_readings[offset] for offset in row.wanted])
    return state.tokens[before:] if len(state.tokens) > before else list(procedure.propose(state)[-1].tokens)


@pytest.mark.parametrize("length,steps", [(8, 8), (16, 5), (10, 4), (12, 1)])
@pytest.mark.parametrize("threshold", [None, 0.9, 0.4])
def test_shares_and_thresholds_are_those_of_the_block_refinement_scheduler(
    length: int, steps: int, threshold: float | None
) -> None:
    rule = {"rule": "confidence"} if threshold is None else {"rule": "threshold", "threshold": threshold}
    procedure, state = begin(length, MASK, steps=steps, **rule)
    scheduler = schedulers.BlockRefinementScheduler(block_length=length, threshold=2.0 if threshold is None else threshold)
    scheduler.set_timesteps(steps, block_length=length)
    sample = torch.full((1, length), MASK)
    for i, logits in enumerate(logits_of(steps, length)):
        output = scheduler.step(logits[None], i, sample, mask_token_id=MASK)
        sample = output.prev_sample
        assert step(procedure, state, logits, output.sampled_tokens[0]) == sample[0].tolist()
        if not bool((sample == MASK).any()):
            break
    assert state.canvas == [] and state.tokens[3:] == sample[0].tolist()


def noise(state: TokenState, length: int, step: int) -> list[int]:
    return [random_token(state.seed, len(PROMPT) + i, step, VOCABULARY) for i in range(length)]


@pytest.mark.parametrize("length,steps,threshold", [(8, 8, None), (10, 4, None), (16, 5, 0.7)])
def test_without_a_mask_token_it_accepts_and_renoises_as_the_block_refinement_scheduler(
    monkeypatch: pytest.MonkeyPatch, length: int, steps: int, threshold: float | None
) -> None:
    rule = {"rule": "confidence"} if threshold is None else {"rule": "threshold", "threshold": threshold}
    procedure, state = begin(length, None, steps=steps, **rule)
    scheduler = schedulers.BlockRefinementScheduler(block_length=length, threshold=2.0 if threshold is None else threshold)
    scheduler.set_timesteps(steps, block_length=length)
    sample = torch.tensor([noise(state, length, 0)])
    assert list(procedure.propose(state)[-1].tokens) == sample[0].tolist()
    for i, logits in enumerate(logits_of(steps, length)):
        monkeypatch.setattr(torch, "randint", lambda *_, i=i, **__: torch.tensor([noise(state, length, i + 1)]))
        output = scheduler.step(logits[None], i, sample)
        sample = output.prev_sample
        accepted = step(procedure, state, logits, output.sampled_tokens[0])
        assert accepted == sample[0].tolist()
        if not state.canvas:
            return
    raise AssertionError("the canvas was never finished")


@pytest.mark.parametrize("bound", [0.1, 1.0, 6.0])
def test_the_entropy_bound_is_that_of_the_entropy_bound_scheduler(monkeypatch: pytest.MonkeyPatch, bound: float) -> None:
    length, steps = 16, 8
    procedure, state = begin(length, None, rule="entropy_bound", entropy_bound=bound, steps=steps)
    scheduler = schedulers.EntropyBoundScheduler(entropy_bound=bound, t_max=1.0, t_min=1.0, num_inference_steps=steps)
    sample = torch.tensor([noise(state, length, 0)])
    counts = set()
    for i, logits in enumerate(logits_of(steps - 1, length)):
        monkeypatch.setattr(torch, "randint", lambda *_, i=i, **__: torch.tensor([noise(state, length, i + 1)]))
        finite = logits.masked_fill(logits == float("-inf"), torch.finfo(torch.float32).min)
        output = scheduler.step(finite[None], i, sample)
        sample = output.prev_sample
        counts.add(int(output.accepted_index.sum()))
        assert step(procedure, state, logits, output.sampled_tokens[0]) == sample[0].tolist()
        if not state.canvas:
            break
    assert len(counts) > 1 or bound == 6.0
    # On a network with a mask token what is set stays set, and the choice among the rest is the same.
    procedure, state = begin(length, MASK, rule="entropy_bound", entropy_bound=bound)
    logits = next(logits_of(3, length))
    finite = logits.masked_fill(logits == float("-inf"), torch.finfo(torch.float32).min)
    output = scheduler.step(finite[None], 0, sample)
    seen = step(procedure, state, logits, output.sampled_tokens[0])
    kept = torch.where(output.accepted_index[0], output.sampled_tokens[0], torch.tensor(MASK)).tolist()
    assert seen == kept


def test_uniform_noise_is_removed_by_the_posterior_of_the_discrete_ddim_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    length, steps = 64, 6
    procedure, state = begin(length, None, rule="uniform", steps=steps)
    scheduler = schedulers.DiscreteDDIMScheduler(num_inference_steps=steps)
    sample = torch.tensor([noise(state, length, 0)])
    assert "multinomial" in inspect.getsource(schedulers.DiscreteDDIMScheduler.step)
    taken = set()
    for i, logits in enumerate(logits_of(steps, length)):
        lots = torch.tensor([uniform(state.seed, len(PROMPT) + j, i, Purpose.ROUTE) for j in range(length)])

        def by_lot(probabilities: Tensor, lots: Tensor = lots, **_: object) -> Tensor:
            return (probabilities.cumsum(-1) <= lots[:, None]).sum(-1, keepdim=True).clamp(max=2)

        monkeypatch.setattr(torch, "multinomial", by_lot)
        monkeypatch.setattr(torch, "randint", lambda *_, i=i, **__: torch.tensor([noise(state, length, i + 1)]))
        output = scheduler.step(logits[None], i, sample)
        before, sample = sample, output.prev_sample
        taken |= {bool(same) for same in (sample == before)[0]}
        assert step(procedure, state, logits, output.sampled_tokens[0]) == sample[0].tolist()
    assert state.canvas == [] and taken == {True, False}
    assert state.tokens[3:] == logits.argmax(-1).tolist()


def test_the_reference_and_the_kernel_agree_on_entropy_and_margin() -> None:
    torch.manual_seed(0)
    for vocabulary in (3, 17, 264, 5000):
        logits = torch.randn(9, vocabulary) * torch.linspace(0.01, 30, 9)[:, None]
        logits[:, 1] = float("-inf")
        temperature = torch.tensor([1.0, 0.7, 0.0, 2.0, 1.0, 0.5, 1e-4, 1.0, 1.3])
        scale = torch.where(temperature < 1e-5, torch.ones(9), temperature)
        for ours, theirs in zip(spread(logits, temperature), reference.spread(logits, scale), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=5e-5)
        finite = logits.masked_fill(logits == float("-inf"), -1e30)
        expected = torch.distributions.Categorical(logits=(finite / scale[:, None]).double()).entropy()
        torch.testing.assert_close(spread(logits, temperature)[0].double(), expected, atol=2e-5, rtol=5e-5)
