"""What is measured alike: something that continues prompts, in a process of its own, and the memory that it took."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import psutil


class Unavailable(Exception):
    """This contestant cannot run here, and why."""


def told(error: Exception) -> str:
    """What went wrong, in a line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


@dataclass(frozen=True)
class Stream:
    """One continuation. Seconds from the moment when all its turn's prompts were handed over; tokens are empty where the
    contestant gives text alone."""

    first: float
    last: float
    count: int
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """The same prompt as text, for those behind HTTP, and as token ids."""

    text: str
    tokens: tuple[int, ...]


class Contestant(Protocol):
    def generate(self, prompts: Sequence[Prompt], count: int) -> list[Stream]:
        """Greedy continuations by `count` tokens, all at once. Raises Unavailable."""
        ...

    def peak_memory(self) -> int:
        """Bytes: the highest resident memory of each of its processes so far, added up."""
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """A contestant without HTTP, as it is inside its own process."""

    def generate(self, prompts: Sequence[Prompt], count: int) -> list[Stream]: ...


class EngineFactory(Protocol):
    """Picklable. Raises Unavailable, or ImportError where a package is missing."""

    def __call__(self, folder: Path, threads: int, sequences: int, length: int) -> Engine: ...


class InProcess:
    """An engine in a child process, asked through a pipe. Raises Unavailable when it does not start."""

    def __init__(self, factory: EngineFactory, folder: Path, threads: int, sequences: int, length: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, factory, folder, threads, sequences, length), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except Unavailable:
            self.close()
            raise

    def generate(self, prompts: Sequence[Prompt], count: int) -> list[Stream]:
        self._pipe.send((list(prompts), count))
        streams = self._answer()
        assert isinstance(streams, list)
        return streams

    def peak_memory(self) -> int:
        assert self._process.pid is not None
        return peak_memory(self._process.pid)

    def close(self) -> None:
        self._pipe.close()
        self._process.join(timeout=10)
        self._process.kill()

    def _answer(self) -> object:
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise Unavailable(f"its process ended with status {self._process.exitcode}") from None
        if isinstance(answer, Exception):
            raise Unavailable(f"{type(answer).__name__}: {answer}") from answer
        return answer


def _serve(pipe: Connection, factory: EngineFactory, folder: Path, threads: int, sequences: int, length: int) -> None:
    try:
        engine = factory(folder, threads, sequences, length)
        pipe.send("ready")
        while True:
            pipe.send(engine.generate(*pipe.recv()))
    except EOFError:
        return
    except Exception as error:  # whatever stops a contestant is its entry in the table
        pipe.send(error if isinstance(error, Unavailable) else Unavailable(f"{type(error).__name__}: {error}"))


def peak_memory(pid: int) -> int:
    """Bytes: VmHWM of a process and its descendants, added up; memory that they share counts more than once."""
    process = psutil.Process(pid)
    return sum(_high_water(each.pid) for each in [process, *process.children(recursive=True)])


def _high_water(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
