"""Requests that wait for their grammar."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from llguidance import LLMatcher

from service.engine.grammar import Grammars
from service.engine.messages import Failed, Sampling, Submit, TextWork
from tests.engine.driving import engine_on


def submit(name: str, deadline: float) -> Submit:
    work = TextWork([1, 2, 3], 4, Sampling(temperature=0.0), grammar="start: /a/")
    return Submit(name, "text", "autoregressive", {}, 0, work, time.monotonic(), 0, deadline)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_deadline_passes_while_a_grammar_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    pending: Future[LLMatcher] = Future()
    monkeypatch.setattr(Grammars, "compile", lambda self, grammar: pending)
    engine = engine_on(tmp_path)
    assert engine.take(submit("late", time.monotonic() - 1.0)) == []
    if compiled:
        from llguidance import LLTokenizer

        pending.set_result(LLMatcher(LLTokenizer("byte"), "start: /a/"))
    (failed,) = engine.tick()
    assert isinstance(failed, Failed) and failed.status == 504 and not engine.has_work
