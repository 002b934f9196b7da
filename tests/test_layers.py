"""Who may import whom: the borders of the design, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT: dict[str, set[str]] = {
    "service.api": {"service.engine", "service.settings", "service.metrics", "service.logs", "service"},
    "service.engine": {"service.procedures", "service.workers", "service.settings", "service.logs"},
    "service.workers": {"service.models", "service.procedures", "service.logs", "kernels"},
    "service.models": {"service.procedures", "kernels"},
    "service.procedures": set(),
    "service.training": {"service.models", "service.procedures", "kernels"},
    "service.bench": set(),
    "service.settings": set(),
    "service.logs": set(),
    "service.metrics": {"service.engine", "service"},
    "service": set(),
    "kernels": set(),
}
"""Package (or module of `service` itself) to the others it may import; "service" is `service/__init__.py`, which holds
the version. `service.cli` puts the parts together and may import all of them."""

EVERYTHING = "service.cli"


def package_of(module: str) -> str:
    """The key of MAY_IMPORT that a dotted module name belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "service" else parts[0]


def module_name(file: Path) -> str:
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import, those inside functions and `if TYPE_CHECKING` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                keep = module.split(".")
                keep = keep[: len(keep) - node.level + is_package]
                base = ".".join([*keep, base] if base else keep)
            # `from service import engine` imports the submodule, `from service import __version__` the package.
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if _exists(inner) else base


def _exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def sources() -> list[Path]:
    return sorted(file for top in ("service", "kernels") for file in (ROOT / top).rglob("*.py"))


def ours(module: str) -> bool:
    return module.split(".")[0] in ("service", "kernels")


def local_imports(file: Path) -> Iterator[tuple[int, str]]:
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    for line, target in imports_of(tree, module_name(file), file.name == "__init__.py"):
        if ours(target):
            yield line, target


def broken_borders() -> Iterator[str]:
    for file in sources():
        package = package_of(module_name(file))
        if package == EVERYTHING:
            continue
        allowed = MAY_IMPORT.get(package)
        if allowed is None:
            yield f"{file.relative_to(ROOT)}: {package} has no entry in MAY_IMPORT"
            continue
        for line, target in dict.fromkeys(local_imports(file)):
            other = package_of(target)
            if other != package and other not in allowed:
                yield f"{file.relative_to(ROOT)}:{line}: {package} may not import {target}"


def test_every_import_goes_down_the_road() -> None:
    broken = list(broken_borders())
    assert not broken, "\n" + "\n".join(broken)


def test_the_allowed_imports_have_no_cycle() -> None:
    remaining = {package: set(allowed) for package, allowed in MAY_IMPORT.items()}
    while remaining:
        leaves = {package for package, allowed in remaining.items() if not allowed & remaining.keys()}
        assert leaves, f"a cycle among {sorted(remaining)}"
        remaining = {package: allowed for package, allowed in remaining.items() if package not in leaves}


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {module_name(file): {target for _, target in local_imports(file)} for file in sources()}
    while graph:
        leaves = {module for module, targets in graph.items() if not (targets - {module}) & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {module: targets for module, targets in graph.items() if module not in leaves}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import service.workers.types", "service.workers.types"),
        ("from service.engine.messages import Submit", "service.engine.messages"),
        ("from service import settings", "service.settings"),
        ("from service import __version__", "service"),
        ("from ..procedures.types import Axis", "service.procedures.types"),
        ("def late():\n    from kernels import attention", "kernels"),
    ],
)
def test_the_scan_sees_every_form_of_import(source: str, expected: str) -> None:
    found = [target for _, target in imports_of(ast.parse(source), "service.api.app", is_package=False)]
    assert [package_of(target) for target in found] == [package_of(expected)]


FRONT_END = [
    "service.api.app", "service.engine.client", "service.engine.grammar_trial", "service.procedures.registry", "service.bench",
    "service.models.model_spec",
]  # fmt: skip


def test_procedures_import_nothing_of_the_device_or_the_network() -> None:
    forbidden = {"torch", "zmq", "httpx", "fastapi", "asyncio", "socket"}
    for file in (ROOT / "service/procedures").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        tops = {target.split(".")[0] for _, target in imports_of(tree, module_name(file), False)}
        assert not tops & forbidden, f"{file.name} imports {tops & forbidden}"


@pytest.mark.parametrize("module", FRONT_END)
def test_the_front_end_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr or f"{module} imports torch"
