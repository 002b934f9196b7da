"""The Dockerfile is clean, its last images hold no tools, and its steps give a service that is healthy."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()


def stage(name: str) -> list[tuple[str, str]]:
    """Instructions of a stage, with those of the stages that it goes on from before them."""
    found: list[tuple[str, str]] = []
    at = next(i for i, line in enumerate(LINES) if line.startswith("FROM ") and line.endswith(f" AS {name}"))
    base = LINES[at].split()[1]
    if any(line.endswith(f" AS {base}") for line in LINES):
        found = stage(base)
    for line in LINES[at + 1 :]:
        if line.startswith("FROM "):
            break
        if line and not line.startswith("#"):
            instruction, words = line.strip().split(" ", 1)
            found.append((instruction, words.strip()))
    return found


def only(name: str, instruction: str) -> str:
    (words,) = [words for given, words in stage(name) if given == instruction]
    return words


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    ended = subprocess.run([hadolint, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_last_images_hold_no_tools_and_run_as_nobody_special(target: str) -> None:
    done = " ".join(words for instruction, words in stage(target) if instruction == "RUN")
    assert not re.search(r"apt|pip|g\+\+|gcc|make", done)
    user, group = only(target, "USER").split(":")
    assert user == group and int(user) > 999
    assert stage(target)[-1][0] == "USER", "what comes after would not be root's"
    (copied,) = [words for instruction, words in stage(target) if instruction == "COPY"]
    assert copied == f"--from=build-{target} /opt/stride /opt/stride"
    assert json.loads(only(target, "ENTRYPOINT")) + json.loads(only(target, "CMD")) == ["stride", "serve"]


def context(folder: Path) -> None:
    """What a build sees of the project: its .dockerignore applied."""
    rules = (ROOT / ".dockerignore").read_text().split()
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    left_out = [rule.removeprefix("**/") for rule in rules if rule.startswith("**/")]
    assert set(rules) == {"*", *(f"!{name}" for name in kept), *(f"**/{name}" for name in left_out)}

    def ignored(_: str, names: list[str]) -> set[str]:
        return {name for name in names for rule in left_out if fnmatch.fnmatch(name, rule)}

    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)


@pytest.fixture
def image() -> Iterator[Path]:
    """A folder that everybody may read, as the root of an image."""
    folder = Path(tempfile.mkdtemp(prefix="stride-image-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="the build stage needs Linux and g++")
def test_the_steps_replayed_without_docker_give_a_service_that_is_healthy_and_ends_with_0(image: Path) -> None:
    """`/opt/stride` is a virtual environment here too, but sees the dependencies of this one instead of fetching its own."""
    prefix, source, home = image / "stride", image / "src", image / "home"
    for folder in (source, home):
        folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(prefix)], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(prefix)}))
    theirs = sysconfig.get_path("purelib")
    editable = "\n".join(f"import sys; sys.path.append({theirs!r})".splitlines())
    (packages / "dependencies.pth").write_text(editable + "\n")

    seen = image / "context"
    seen.mkdir()
    context(seen)
    for instruction, words in stage("build-cpu"):
        if instruction == "COPY":
            *names, place = words.split()
            for name in names:
                target = source / place / (name if place == "./" else "")
                shutil.copytree(seen / name, target) if (seen / name).is_dir() else shutil.copy(seen / name, target)
    python = prefix / "bin/python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-build-isolation", str(source)]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(install, check=True, cwd=image, env=clean)
    last = "python -m kernels.cpu --portable && pip uninstall --quiet --yes pip"
    assert stage("build-cpu")[-1] == ("RUN", last), "what follows replays this"
    subprocess.run([str(python), "-m", "kernels.cpu", "--portable"], check=True, cwd=image, env=clean)
    for folder in (source, seen):
        shutil.rmtree(folder)
    assert len(list(packages.glob("kernels/cpu/portable-*.so"))) == 1
    assert not list(packages.rglob("tests")) and not (packages / "deploy").exists()

    told = {name: value for words in _all("cpu", "ENV") for name, value in (pair.split("=", 1) for pair in shlex.split(words))}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    tools = image / "bin"
    tools.mkdir()
    variables = {**told, "PATH": f"{prefix}/bin:{tools}", "STRIDE_PORT": port, "HOME": str(home), "TMPDIR": str(home)}
    assert all(shutil.which(name, path=variables["PATH"]) is None for name in ("g++", "gcc", "cc", "make", "pip"))
    user = int(only("cpu", "USER").split(":")[0]) if os.geteuid() == 0 and _others_may_run(python) else None
    if user is not None:
        os.chown(home, user, user)
    ids = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    command = [str(prefix / "bin" / json.loads(only("cpu", "ENTRYPOINT"))[0]), *json.loads(only("cpu", "CMD"))]
    check = json.loads(only("cpu", "HEALTHCHECK").split(" CMD ", 1)[1])
    check[0] = str(python)
    with (image / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=home, env=variables, stdout=log, stderr=log, **ids)  # type: ignore[call-overload]
        try:
            deadline = time.monotonic() + 600
            while subprocess.run(check, env=variables, cwd=home, capture_output=True).returncode:
                assert process.poll() is None and time.monotonic() < deadline, (image / "log").read_text()
                time.sleep(0.5)
            process.send_signal(getattr(signal, only("cpu", "STOPSIGNAL")))
            assert process.wait(timeout=60) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    lines = (image / "log").read_text().splitlines()
    assert all(json.loads(line) for line in lines) and any("stride.drain" in line for line in lines)


def _all(name: str, instruction: str) -> list[str]:
    return [words for given, words in stage(name) if given == instruction]


def _others_may_run(program: Path) -> bool:
    """Whether each folder on the way to an interpreter can be entered by everybody."""
    folders = program.resolve().parents
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in folders)
