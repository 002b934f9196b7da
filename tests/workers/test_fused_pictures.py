"""Pictures whose sampler steps are the fused kernel are those of plain torch, whatever shares a forward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kernels.dispatch import TRITON_IS_THERE, prefer_triton
from kernels.sampler_update import triton_kernel
from service.engine.messages import ImageWork, Preview, Submit
from tests.engine.test_pictures import engine_of
from tests.latent_networks import ToyNetwork

pytestmark = pytest.mark.skipif(
    not TRITON_IS_THERE or torch.cuda.is_available(), reason="tensors of a CPU need Triton's interpreter"
)


def submits() -> list[Submit]:
    """Samplers with and without noise and history, with guidance, its rescaling, and none, some with previews."""
    asked: list[tuple[str, dict[str, Any]]] = [
        ("euler", {"steps": 3, "guidance": 2.0}),
        ("euler_ancestral", {"steps": 4, "guidance": 1.0}),
        ("euler_ancestral", {"steps": 2, "guidance": 3.0, "guidance_rescale": 0.7}),
        ("dpmpp_2m", {"steps": 4, "guidance": 1.5}),
    ]
    return [
        Submit(f"r{i}", "toy", name, parameters, i, ImageWork("a red fox", 32, 32, preview_every=i % 2), 0.0)
        for i, (name, parameters) in enumerate(asked)
    ]


def pictures() -> dict[str, list[np.ndarray]]:
    """Of every request its previews and its picture."""
    engine, seen = engine_of(ToyNetwork()), dict[str, list[np.ndarray]]()
    for submit in submits():
        engine.take(submit)
    while engine.has_work:
        for event in engine.tick():
            if isinstance(event, Preview) or getattr(event, "rgb", None):
                seen.setdefault(event.id, []).append(np.frombuffer(event.rgb, np.uint8).astype(int))
    return seen


def test_the_same_pictures_with_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, runs, run = pictures(), [], triton_kernel.sampler_step

    def counting(*arguments: Any) -> Any:
        runs.append(arguments)
        return run(*arguments)

    monkeypatch.setattr(triton_kernel, "sampler_step", counting)
    with prefer_triton():
        ours = pictures()
    assert runs and any(arguments[7] for arguments in runs) and any(arguments[6] for arguments in runs)
    assert {name: len(some) for name, some in ours.items()} == {name: len(some) for name, some in expected.items()}
    assert len(ours["r1"]) > 1, "previews"
    for name, some in ours.items():
        for one, other in zip(some, expected[name], strict=True):
            assert np.abs(one - other).max() <= 1
