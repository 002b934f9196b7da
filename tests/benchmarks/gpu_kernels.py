"""Every kernel at the sizes of `gpu_cases`: how near it comes to what the card can do, and to the best other way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from kernels.dispatch import prefer_triton
from tests.benchmarks.gpu_cases import Case, every_case
from tests.benchmarks.gpu_clock import Ceilings, seconds

HEADER = (
    "| kernel | dtype | µs | GB/s | of copy | TFLOP/s | of matmul | best other | its µs | times as fast |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Measured:
    """Seconds of ours, and of each peer that ran; `failed` says of the others why."""

    case: Case
    ours: float
    peers: dict[str, float]
    failed: dict[str, str]

    def row(self, ceilings: Ceilings) -> str:
        case, took = self.case, self.ours
        moved, worked = case.bytes / took, case.flops / took
        rate = (f"{moved / 1e9:.0f}", f"{moved / ceilings.copy:.2f}") if case.bytes else ("", "")
        work = (f"{worked / 1e12:.1f}", f"{worked / ceilings.matmul:.2f}") if case.flops else ("", "")
        best = min(self.peers, key=lambda name: self.peers[name], default="none")
        other = (best, f"{self.peers[best] * 1e6:.1f}", f"{self.peers[best] / took:.2f}") if self.peers else (best, "", "")
        return "| " + " | ".join((case.name, case.dtype, f"{took * 1e6:.1f}", *rate, *work, *other)) + " |"


def measure(case: Case, device: torch.device, small: bool) -> Measured:
    peers, failed = {}, {}
    for name, run in case.peers.items():
        try:
            peers[name] = seconds(run, device, small)
        except (RuntimeError, ValueError, ImportError, NotImplementedError) as error:
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return Measured(case, seconds(case.ours, device, small), peers, failed)


def kernel_report(device: torch.device, small: bool, only: str) -> Iterator[str]:
    """Lines of markdown, as they are measured."""
    ceilings = Ceilings.measured(device, small)
    yield (
        f"Ceilings measured in this run: copy {ceilings.copy / 1e9:.0f} GB/s (read and written), "
        f"matmul {ceilings.matmul / 1e12:.1f} TFLOP/s."
    )
    interpreted = device.type != "cuda"
    if interpreted:
        yield "Triton's kernels run in its interpreter here: times beside those of their peers mean nothing."
    yield ""
    yield HEADER
    failed: dict[str, str] = {}
    for case in every_case(device, small, only):
        with torch.inference_mode(), prefer_triton() if interpreted else nullcontext():
            measured = measure(case, device, small)
        failed |= {f"{case.name}, {name}": why for name, why in measured.failed.items()}
        yield measured.row(ceilings)
    yield ""
    yield from (f"- {name} did not run: {why}" for name, why in failed.items())
