"""Reuse between steps: the same as without where nothing is reused, diffusers' first-block cache where something is, and the
same for a row alone and beside others that reuse at other steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service.models.flow_transformer import FlowTransformer, FlowTransformerConfig
from service.models.reuse import Reuse, reusable, reusing
from tests.dit_checkpoints import diffusers_dit, randomised, small_dit

Inputs = dict[str, Any]
STEPS = 6


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dit() -> tuple[nn.Module, Inputs]:
    rows = torch.arange(4)
    return small_dit("sit"), {"t": rows / 4, "s": rows / 4, "guidance": torch.ones(4), "labels": rows}


def diffusers_class_conditional() -> tuple[nn.Module, Inputs]:
    return diffusers_dit(), {"timestep": torch.arange(4), "class_labels": torch.arange(4)}


def embedded() -> tuple[nn.Module, Inputs]:
    config = FlowTransformerConfig(vocab_size=20, image_size=8, patch_size=2, width=32, depth=3, heads=2)
    network = randomised(FlowTransformer(config))
    text = torch.tensor([[2, 3, 4, 0, 0], [5, 6, 0, 0, 0], [7, 8, 9, 10, 11], [3, 0, 0, 0, 0]])
    t = torch.full((4,), 0.5)
    return network, {"t": t, "s": t, "guidance": torch.ones(4), "text": text}


def stable_diffusion_3() -> tuple[nn.Module, Inputs]:
    from diffusers import SD3Transformer2DModel

    network = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    conditions = {"encoder_hidden_states": noise(4, 7, 32, seed=2), "pooled_projections": noise(4, 64, seed=3)}
    return randomised(network, scale=0.08), {"timestep": torch.arange(4.0), **conditions}


def flux() -> tuple[nn.Module, Inputs]:
    from diffusers import FluxTransformer2DModel

    network = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    conditions = {"encoder_hidden_states": noise(4, 4, 32, seed=2), "pooled_projections": noise(4, 32, seed=3)}
    ids = {"img_ids": torch.arange(3.0 * 4).view(4, 3), "txt_ids": torch.zeros(4, 3)}
    return randomised(network, scale=0.08), {"timestep": torch.arange(4.0) / 4, **conditions, **ids}


def flux_2() -> tuple[nn.Module, Inputs]:
    from diffusers import Flux2Transformer2DModel

    network = Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, timestep_guidance_channels=32, axes_dims_rope=[4, 4, 4, 4], guidance_embeds=False,
    )  # fmt: skip
    ids = {"img_ids": torch.arange(4.0 * 4).view(4, 4), "txt_ids": torch.zeros(3, 4)}
    return randomised(network, scale=0.08), {
        "timestep": torch.arange(4.0) / 4, "guidance": None, "encoder_hidden_states": noise(4, 3, 32, seed=2), **ids,
    }  # fmt: skip


def pixart() -> tuple[nn.Module, Inputs]:
    from diffusers import PixArtTransformer2DModel

    network = PixArtTransformer2DModel(
        num_layers=3, num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, cross_attention_dim=32,
        caption_channels=32, sample_size=8, patch_size=2, use_additional_conditions=False,
    )  # fmt: skip
    mask = torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1] * 5])
    conditions = {"encoder_hidden_states": noise(4, 5, 32, seed=2), "encoder_attention_mask": mask}
    none = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    return randomised(network), {"timestep": torch.arange(4), **conditions, **none}


def sana() -> tuple[nn.Module, Inputs]:
    from diffusers import SanaTransformer2DModel

    network = SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=3, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8, sample_size=8,
    )  # fmt: skip
    return randomised(network), {"timestep": torch.arange(4), "encoder_hidden_states": noise(4, 5, 8, seed=2)}


def qwen_image() -> tuple[nn.Module, Inputs]:
    from diffusers import QwenImageTransformer2DModel

    network = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    return randomised(network, scale=0.08), {
        "timestep": torch.arange(4.0) / 4, "encoder_hidden_states": noise(4, 4, 16, seed=2), "encoder_hidden_states_mask": mask,
        "img_shapes": [[(1, 2, 2)]] * 4,
    }  # fmt: skip


def z_image() -> tuple[nn.Module, Inputs]:
    from diffusers import ZImageTransformer2DModel

    network = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=16, n_layers=3, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=[2, 2, 4], axes_lens=[256, 16, 16],
    )  # fmt: skip
    captions = [noise(length, 16, seed=length) for length in (5, 40, 33, 1)]  # padded to multiples of 32
    return randomised(network, scale=0.2), {"t": torch.arange(4.0) / 4, "cap_feats": captions}


LATENTS: dict[str, tuple[int, ...]] = {"flux": (4, 4), "flux_2": (4, 4), "qwen_image": (4, 16)}
FIRST: dict[str, str] = {"dit": "x", "embedded": "x", "z_image": "x"}
NETWORKS: list[Callable[[], tuple[nn.Module, Inputs]]] = [
    dit, diffusers_class_conditional, embedded, stable_diffusion_3, flux, flux_2, pixart, sana, qwen_image,
    z_image,
]  # fmt: skip


class Run:
    """A network on latents that move a little from step to step, each row at its own pace."""

    def __init__(self, build: Callable[[], tuple[nn.Module, Inputs]]) -> None:
        self.network, self.inputs = build()
        self.network.eval()
        self.first = FIRST.get(build.__name__, "hidden_states")
        self.start = noise(4, *LATENTS.get(build.__name__, (3, 8, 8) if build is embedded else (4, 8, 8)), seed=1)
        self.drift = noise(*self.start.shape, seed=4) * torch.tensor([0.0, 0.05, 0.2, 2.0]).view(-1, *[1] * (self.start.ndim - 1))
        self.listed = build is z_image  # takes and gives a list of latents with an axis of time

    @torch.no_grad()
    def evaluate(self, step: int, rows: list[int], reuse: list[Reuse | None]) -> Tensor:
        def of_rows(value: Any) -> Any:
            if isinstance(value, Tensor) and len(value) == 4:
                return value[rows]
            return [value[i] for i in rows] if isinstance(value, list) else value

        shared = ("img_ids", "txt_ids")
        inputs = {key: value if key in shared else of_rows(value) for key, value in self.inputs.items()}
        if "text" in inputs:  # padded to the longest of this call, as the worker does
            inputs["text"] = inputs["text"][:, : int((inputs["text"] != 0).sum(1).max())]
        x = (self.start + step * self.drift)[rows]
        given = list(x.unsqueeze(2)) if self.listed else x
        with reusing(self.network, reuse):
            out = self.network(**{self.first: given}, **inputs)
        if self.listed:
            return torch.stack(out.sample).squeeze(2)
        return out if isinstance(out, Tensor) else out.sample

    def alone(self, row: int, threshold: float) -> tuple[list[Tensor], list[int]]:
        """A row's outputs step by step, and how many evaluations it had reused after each."""
        memory = Reuse(threshold)
        outputs, counts = [], []
        for step in range(STEPS):
            outputs.append(self.evaluate(step, [row], [memory])[0])
            counts.append(memory.reused)
        return outputs, counts


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda build: build.__name__)
def run(request: pytest.FixtureRequest) -> Run:
    torch.manual_seed(0)
    return Run(request.param)


def test_threshold_zero_is_the_network_itself(run: Run) -> None:
    memories = [Reuse(0.0) for _ in range(4)]
    for step in range(2):
        assert torch.equal(run.evaluate(step, [0, 1, 2, 3], [*memories]), run.evaluate(step, [0, 1, 2, 3], [None] * 4))
    assert [memory.reused for memory in memories] == [0] * 4


def test_an_evaluation_that_reuses_nothing_is_the_network_itself(run: Run) -> None:
    expected = run.evaluate(0, [0, 1, 2, 3], [None] * 4)
    assert torch.equal(run.evaluate(0, [0, 1, 2, 3], [Reuse(0.1), None, Reuse(1e9), Reuse(0.0)]), expected)


def test_a_huge_threshold_reuses_all_but_the_first(run: Run) -> None:
    memories = [Reuse(1e9) for _ in range(4)]
    for step in range(STEPS):
        out = run.evaluate(step, [0, 1, 2, 3], [*memories])
        assert [memory.reused for memory in memories] == [step] * 4
        if step:  # row 0 does not move: what was added last time is what the blocks would add now
            torch.testing.assert_close(out[0], run.evaluate(step, [0], [None])[0], atol=1e-4, rtol=1e-4)
            assert (out[3] - run.evaluate(step, [3], [None])[0]).abs().max() > 1e-3


def test_rows_that_reuse_at_different_steps_are_what_they_are_alone(run: Run) -> None:
    """Row 1 is beside others from the second step on, row 3 leaves after the fourth, and row 2 keeps no memory."""
    threshold = threshold_between(run)
    alone = {row: run.alone(row, threshold) for row in (0, 1, 3)}
    assert alone[0][1][-1] == STEPS - 1 and 0 < alone[1][1][-1] < STEPS - 1, "one row reuses always, one now and then"
    memories: dict[int, Reuse | None] = {0: Reuse(threshold), 1: Reuse(threshold), 2: None, 3: Reuse(threshold)}
    progress = dict.fromkeys(memories, 0)
    for tick in range(STEPS + 1):
        rows = [row for row in memories if not (row == 1 and tick == 0) and not (row == 3 and tick > 3) and progress[row] < STEPS]
        outputs = together_by_step(run, rows, progress, memories)
        for row, output in zip(rows, outputs, strict=True):
            step, memory = progress[row], memories[row]
            expected = run.evaluate(step, [row], [None])[0] if memory is None else alone[row][0][step]
            torch.testing.assert_close(output, expected, atol=2e-4, rtol=2e-4)
            if memory is not None:
                assert memory.reused == alone[row][1][step]
            progress[row] += 1


def together_by_step(run: Run, rows: list[int], progress: dict[int, int], memories: dict[int, Reuse | None]) -> Tensor:
    """One call in which every row is at its own step."""
    start = run.start
    moved = torch.stack([start[row] + progress[row] * run.drift[row] for row in range(4)])
    run.start = moved
    try:
        return run.evaluate(0, rows, [memories[row] for row in rows])
    finally:
        run.start = start


def threshold_between(run: Run) -> float:
    """Such that row 1 reuses now and then: twice and a half its first block's change in a step."""
    probe = Reuse(1e-12)
    run.evaluate(0, [1], [probe])
    assert probe.memory is not None
    before = probe.memory.first
    run.evaluate(1, [1], [probe])
    change = (probe.memory.first - before).abs().mean() / before.abs().mean()
    return 2.5 * float(change)


@pytest.mark.parametrize("build", [flux, qwen_image])
def test_a_single_request_is_what_diffusers_first_block_cache_makes_of_it(build: Callable[[], tuple[nn.Module, Inputs]]) -> None:
    from diffusers.hooks import FirstBlockCacheConfig

    torch.manual_seed(0)
    run = Run(build)
    threshold = threshold_between(run)
    ours, counts = run.alone(1, threshold)
    assert 0 < counts[-1] < STEPS - 1
    run.network.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    for step in range(STEPS):
        with run.network.cache_context("conditional"):
            torch.testing.assert_close(run.evaluate(step, [1], [None])[0], ours[step], atol=1e-5, rtol=1e-5)


def test_nothing_stays_in_the_network(run: Run) -> None:
    before = {name: dict(module.__dict__) for name, module in run.network.named_modules()}
    run.evaluate(0, [0, 1], [Reuse(1e9), Reuse(0.1)])
    after = {name: dict(module.__dict__) for name, module in run.network.named_modules()}
    assert all(before[name].keys() == after[name].keys() for name in before)


def test_a_call_that_fails_leaves_the_memory_as_it_was() -> None:
    run = Run(dit)
    memory = Reuse(1e9)
    run.evaluate(0, [0], [memory])
    kept = memory.memory
    run.inputs["labels"] = torch.full((4,), 99)
    with pytest.raises(IndexError):
        run.evaluate(1, [0], [memory])
    assert memory.memory is kept and memory.reused == 0


def test_a_network_without_blocks_is_refused_by_name() -> None:
    network = nn.Linear(2, 2)
    assert not reusable(network)
    with pytest.raises(ValueError, match="Linear has no blocks"), reusing(network, [Reuse(0.1)]):
        pass


def test_a_u_net_cannot_reuse() -> None:
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, cross_attention_dim=8,
        attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    assert not reusable(network)


def test_a_threshold_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold"):
        Reuse(-0.1)
