"""Compiles every instance in `AOT` of the Triton kernels for a GPU that need not be there, and prints what became of them.

    python -m tests.kernels.compiling [--first] [FOLDER OF kernels/]

With --first only the first instance of each function.

Run without TRITON_INTERPRET. Prints one JSON object a line: kernel, instance, error, registers a thread, stack in bytes a
thread (spilled registers live there), shared memory in bytes a program.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from kernels.dispatch import Instance

HOPPER = GPUTarget("cuda", 90, 32)
KERNELS = Path(__file__).parent.parent.parent / "kernels"
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Compiled:
    kernel: str
    instance: str
    error: str = ""
    registers: int = 0
    stack: int = 0
    shared: int = 0


def instances(only: str) -> Iterator[tuple[str, Instance]]:
    for file in sorted(KERNELS.glob("*/triton_kernel*.py")):
        if only in file.parent.name:
            module = importlib.import_module(f"kernels.{file.parent.name}.{file.stem}")
            yield from ((file.parent.name, Instance(*instance)) for instance in module.AOT)


def compiled(kernel: str, instance: Instance) -> Compiled:
    function, signature, constants, options = instance
    name = f"{function.__name__} {constants} {options or ''}".strip()
    missing = set(function.arg_names) ^ set(signature)
    if missing:
        return Compiled(kernel, name, f"signature and parameters differ in {sorted(missing)}")
    # Tensors of torch begin at multiples of 16 bytes, and "i32:16" is a multiple of 16: a launch would find out.
    types = [signature[name] for name in function.arg_names]
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind[0] == "*" or kind.endswith(":16")}
    ordered = {name: kind.removesuffix(":16") for name, kind in zip(function.arg_names, types, strict=True)}
    try:
        lower_with_ones(instance, ordered)
        binary = triton.compile(ASTSource(function, ordered, constants, aligned), target=HOPPER, options=dict(options))
    except Exception as error:  # reported with the kernel's name: the others are compiled all the same
        return Compiled(kernel, name, f"{type(error).__name__}: {error}")
    registers, stack = usage(binary.asm["cubin"])
    return Compiled(kernel, name, "", registers, stack, binary.metadata.shared)


def lower_with_ones(instance: Instance, types: dict[str, str]) -> None:
    """As far as Triton's own language the same with every integer 1, which a launch makes a constant: what a kernel asks of a
    number it may not be able to ask of a constant. The interpreter does not know the difference."""
    ones = {name for name, kind in types.items() if kind in ("i32", "i64")}
    signature = {name: "constexpr" if name in ones else kind for name, kind in types.items()}
    source = ASTSource(instance.function, signature, {**instance.constants, **dict.fromkeys(ones, 1)})
    backend, context = make_backend(HOPPER), ir.context()
    options = backend.parse_options(dict(instance.options))
    ir.load_dialects(context)
    backend.load_dialects(context)
    source.make_ir(HOPPER, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout)
    assert found, said.stdout
    return int(found[1]), int(found[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", action="store_true")
    parser.add_argument("folder", nargs="?", default="")
    args = parser.parse_args()
    seen = set()
    for kernel, instance in instances(args.folder):
        if args.first and (kernel, instance.function.__name__) in seen:
            continue
        seen.add((kernel, instance.function.__name__))
        print(json.dumps(asdict(compiled(kernel, instance))), flush=True)


if __name__ == "__main__":
    main()
