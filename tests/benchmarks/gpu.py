"""What the kernels and whole models reach on a GPU: `python -m tests.benchmarks.gpu`, or one of both: `--kernels`, `--models`.

Prints markdown with date and hardware; `--append` also adds it to `results.md`. Everything that is compared runs on one card
in one run. `--small --device cpu` goes through all of it at toy sizes, which shows that it works; figures need a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

# Read when triton is imported: without a GPU its kernels run in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

import tests.kernels.interpreter  # noqa: F401
from kernels.dispatch import TRITON_IS_THERE
from tests.benchmarks.gpu_clock import hardware
from tests.benchmarks.gpu_kernels import kernel_report
from tests.benchmarks.gpu_models import TEXT_SIZES, model_report
from tests.benchmarks.gpu_pictures import PICTURES

RESULTS = Path(__file__).parent / "results.md"
NO_GPU = "These are toy sizes on a CPU: they show that everything runs. Figures need a GPU."


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--kernels", action="store_true", help="every kernel against the card's ceilings and its peers")
    parser.add_argument("--models", action="store_true", help="decoders and a DiT end to end against their peers")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--only", default="", help="kernels whose case file's name contains this")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="leaves out kernels' peers so called")
    parser.add_argument("--sizes", nargs="+", metavar="NAME", help=f"of {[*TEXT_SIZES, *PICTURES[False]]}; all unless given")
    parser.add_argument("--batches", nargs="+", type=int, help="texts at a time; 1 16 64 256 unless given")
    parser.add_argument("--folder", type=Path, help="where weights are written and kept; a temporary one unless given")
    parser.add_argument("--append", action="store_true", help="add what is printed to results.md")
    options = parser.parse_args(arguments)
    if not (options.kernels or options.models):
        options.kernels = options.models = True
    if not TRITON_IS_THERE:
        parser.error("triton is not installed")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no GPU here; `--small --device cpu` shows that everything runs, figures need one")
    if not options.device.startswith("cuda") and not options.small:
        parser.error(f"on {options.device} only toy sizes are sensible: give --small")
    if options.append and not options.device.startswith("cuda"):
        parser.error("only figures of a GPU belong into results.md")
    return options


def report(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    device = torch.device(options.device)
    yield f"## On a GPU, {datetime.date.today().isoformat()}"
    yield ""
    yield f"{hardware(device)}. `python -m tests.benchmarks.gpu {' '.join(sys.argv[1:])}`"
    yield ""
    if device.type != "cuda":
        yield NO_GPU
        yield ""
    if options.kernels:
        yield "### Kernels"
        yield ""
        yield from kernel_report(device, options.small, options.only, options.without)
        yield ""
    if options.models:
        yield "### Models"
        yield ""
        yield from model_report(device, options.small, folder, options.sizes, options.batches)
        yield ""


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        for line in report(options, options.folder or Path(temporary)):
            print(line, flush=True)
            lines.append(line)
    if options.append:
        with RESULTS.open("a") as file:
            file.write("\n" + "\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
