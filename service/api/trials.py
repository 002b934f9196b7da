"""Whether a grammar can be followed, found out in processes that may die of it (service/engine/grammar_trial.py)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from contextlib import suppress

from service.engine.client import EngineUnavailable
from service.engine.grammar import GrammarError
from service.engine.messages import ModelCard

log = logging.getLogger("stride.trials")

WORKERS = 2
"""Processes of a model at most, started when needed: beside a grammar that is stuck another can be tried."""
START_SECONDS = 60.0
TRIAL_SECONDS = 15.0
"""Wall-clock time: a process that has the machine to itself is at its limit of CPU time long before."""
TURN_SECONDS = 20.0
REMEMBERED = 1024
TOO_LONG = "it takes too long to compile"
TOO_MUCH = "it takes too much memory, or is nested too deeply"


class Trials:
    """One model's grammars: tried one by one, each once, in processes that stay for the next."""

    def __init__(self, card: ModelCard) -> None:
        self._command = [sys.executable, "-m", "service.engine.grammar_trial", card.folder]
        self._command += map(str, (card.vocab_size, *card.eos_token_ids))
        self._turns = asyncio.Semaphore(WORKERS)
        self._idle: list[Process] = []
        self._known: OrderedDict[bytes, str] = OrderedDict()

    async def check(self, grammar: str) -> None:
        """Returns when the grammar can be compiled and begun. Raises GrammarError, or EngineUnavailable when it cannot be
        told now. When cancelled, the trial ends."""
        key = hashlib.sha256(grammar.encode()).digest()
        if key not in self._known:
            await self._take_turn()
            try:
                # While it waited, another request may have brought the same one.
                if key not in self._known:
                    self._known[key] = await self._tried(grammar)
            finally:
                self._turns.release()
        answer = self._known[key]
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        if answer:
            raise GrammarError(answer)

    async def _take_turn(self) -> None:
        try:
            await asyncio.wait_for(self._turns.acquire(), TURN_SECONDS)
        except TimeoutError:
            raise EngineUnavailable("too many grammars are waiting to be tried") from None

    def close(self) -> None:
        """Ends the processes that wait for a grammar."""
        while self._idle:
            _end(self._idle.pop())

    async def _tried(self, grammar: str) -> str:
        process = await self._process()
        answer = None
        try:
            answer = await _answer(process, grammar, TRIAL_SECONDS)
            if answer is not None:
                return answer
            code = await process.wait()
            log.warning("a grammar ended its trial with code %s", code)
            return TOO_LONG if code == -signal.SIGXCPU else TOO_MUCH
        except TimeoutError:
            raise GrammarError(TOO_LONG) from None  # not to be remembered: the machine may have been busy
        finally:
            if answer is None:
                _end(process)
            else:
                self._idle.append(process)

    async def _process(self) -> Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE)
        failure = None
        try:
            failure = await _answer(process, None, START_SECONDS)
        except TimeoutError:
            pass
        finally:
            if failure != "":
                _end(process)
        if failure is None:
            raise EngineUnavailable("grammars cannot be tried at the moment")
        if failure:
            raise GrammarError(failure)
        return process


async def _answer(process: Process, grammar: str | None, seconds: float) -> str | None:
    """The next answer, to this grammar if one is given; None when the process ends instead. Raises TimeoutError."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(ConnectionError):
        if grammar is not None:
            process.stdin.write(json.dumps(grammar).encode() + b"\n")
        line = await asyncio.wait_for(process.stdout.readline(), seconds)
        return str(json.loads(line)) if line.endswith(b"\n") else None
    return None


def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
