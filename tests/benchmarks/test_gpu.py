"""The benchmark for GPUs runs from end to end at toy sizes, and its cases compute what their peers compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tests.kernels.interpreter  # noqa: F401
from kernels.dispatch import prefer_triton
from tests.benchmarks import gpu
from tests.benchmarks.agreement import TOLERANCE, largest_gap
from tests.benchmarks.checkpoints import write_checkpoint
from tests.benchmarks.engines import StaticLoop
from tests.benchmarks.gpu_cases import Case, Result, every_case
from tests.benchmarks.gpu_clock import Ceilings, covered
from tests.benchmarks.gpu_kernels import Measured
from tests.benchmarks.gpu_models import TEXT_SIZES, TOY, floor_seconds, prompts_of

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compared(name: str, ours: Result, theirs: Result, tolerance: float) -> None:
    if ours is None or theirs is None:
        return
    pair = [(each,) if isinstance(each, torch.Tensor) else each for each in (ours, theirs)]
    for one, other in zip(*([one for one in each if one is not None] for each in pair), strict=True):
        torch.testing.assert_close(
            one, other, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text: f"{name}: {text}"
        )  # fmt: skip


@pytest.mark.parametrize("case", list(every_case(DEVICE, small=True)), ids=lambda case: case.name)
def test_a_case_computes_what_its_peers_compute(case: Case) -> None:
    with torch.inference_mode():
        theirs = {name: peer() for name, peer in case.peers.items()}
        with prefer_triton():
            ours = case.ours()
    assert case.bytes > 0 or case.flops > 0
    for name, result in theirs.items():
        compared(f"{case.name}, {name}", ours, result, case.tolerance)


@pytest.mark.slow
def test_everything_runs_at_toy_sizes_and_says_that_figures_need_a_gpu(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    toy = ["--small", "--device", "cpu", "--only", "token_sampling", "--batches", "2"]
    gpu.main([*toy, "--folder", str(tmp_path)])
    said = capsys.readouterr().out
    assert gpu.NO_GPU in said and "did not run" not in said
    rows = [line for line in said.splitlines() if line.startswith("| ")]
    assert sum(line.startswith("| token sampling") for line in rows) == 5
    assert [line.split("|")[2].strip() for line in rows if line.startswith("| toy")] == ["2"]
    assert sum(line.startswith("| DiT toy") for line in rows) == 1


def test_the_loop_over_a_static_cache_continues_with_the_tokens_of_the_reference(tmp_path: Path) -> None:
    asked = prompts_of(TOY, 2, 9, 1)
    folder = write_checkpoint(tmp_path, TOY)
    loop = StaticLoop(folder, 1, 2, 16, str(DEVICE), compiled=False)
    loop.generate(prompts_of(TOY, 2, 9, 0), 5)
    assert largest_gap(folder, list(zip(asked, loop.generate(asked, 7), strict=True))) < TOLERANCE


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kernels", "--device", "cpu"], "give --small"),
        (["--kernels", "--small", "--device", "cpu", "--append"], "only figures of a GPU"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_that_figures_need_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--kernels"])
    assert "figures need one" in capsys.readouterr().err


def test_a_row_relates_a_kernel_to_the_ceilings_and_to_its_best_peer() -> None:
    case = Case("copying", "bfloat16", lambda: None, bytes=8_000_000, flops=2_000_000)
    row = Measured(case, 1e-5, {"slow": 4e-5, "fast": 2e-5}, {}).row(Ceilings(copy=1e12, matmul=4e12))
    assert row == "| copying | bfloat16 | 10.0 | 800 | 0.80 | 0.2 | 0.05 | fast | 20.0 | 2.00 |"


def test_the_floor_counts_weights_once_and_keys_and_values_of_every_text() -> None:
    weights = 2 * TOY.matrix_weights()
    one_position = 2 * 2 * 2 * TOY.layers * 32  # keys and values of two heads, two bytes a number
    assert floor_seconds(TOY, 3, 10, 1.0) == weights + 3 * 10 * one_position
    assert 1.1e9 < TEXT_SIZES["1B"].matrix_weights() < 1.4e9 and 7e9 < TEXT_SIZES["8B"].matrix_weights() < 9e9


def test_what_several_kernels_cover_counts_once() -> None:
    assert covered([(5.0, 7.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5)]) == 5.0
