"""Training state on disk: written atomically, read without running code from it, and saved when a signal asks to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch


def save_training_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and lists and dicts of them) so that a crash leaves the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_training_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_training_state` wrote; refuses pickled objects other than tensors and plain containers.

    Raises FileNotFoundError when there is nothing to resume from.
    """
    if not path.exists():
        raise FileNotFoundError(f"no training state at {path}: start without --resume")
    return torch.load(path, map_location=device, weights_only=True)


def check_nothing_there(path: Path) -> None:
    """Raises FileExistsError where a run has left a training state, which a new one would overwrite."""
    if path.exists():
        raise FileExistsError(f"{path} exists: continue it with --resume, or choose another folder")


def state_to_resume(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The training state at `path`. Raises ValueError, naming them, when a run with other values of `identity` wrote it."""
    state = load_training_state(path)
    written = state.get("identity", {})
    different = sorted(name for name in identity if written.get(name) != identity[name])
    if different:
        raise ValueError(f"cannot resume {path}: other values of {', '.join(different)}")
    return state


def replace_file(path: Path, content: bytes) -> None:
    """Write a whole file under its final name at once; a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


class StopSignal:
    """Turns SIGTERM and SIGINT into a flag for the duration of a `with`, so that a loop can save and leave.

    A second signal acts as usual. Outside the main thread, where handlers cannot be set, the flag stays false.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in self.SIGNALS:
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:
                break
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()
