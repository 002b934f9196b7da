"""Every kernel at the sizes of `gpu_cases`: how near it comes to what the card can do, and to the best other way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from kernels.dispatch import prefer_triton
from tests.benchmarks.contestant import told
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


def measure(case: Case, device: torch.device, small: bool, without: Sequence[str] = ()) -> Measured:
    peers, failed = {}, {}
    for name, run in case.peers.items():
        if any(part in name for part in without):
            continue
        try:
            peers[name] = seconds(run, device, small)
        except Exception as error:
            failed[name] = told(error)
    return Measured(case, seconds(case.ours, device, small), peers, failed)


def kernel_report(device: torch.device, small: bool, only: str, without: Sequence[str] = ()) -> Iterator[str]:
    """Lines of markdown, as they are measured; without the peers whose names contain one of `without`."""
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
        torch._dynamo.reset()  # it compiles a function for eight shapes, and runs it as it is for those that follow
        try:
            with torch.inference_mode(), prefer_triton() if interpreted else nullcontext():
                measured = measure(case, device, small, without)
        except Exception as error:
            failed[f"{case.name}, {case.dtype}, ours"] = told(error)
            continue
        failed |= {f"{case.name}, {name}": why for name, why in measured.failed.items()}
        yield measured.row(ceilings)
    yield ""
    yield from (f"- {name} did not run: {why}" for name, why in failed.items())
