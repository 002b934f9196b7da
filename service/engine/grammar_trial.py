"""A process in which grammars are tried before anything else compiles them, because one may cost it its life.

llguidance recurses natively over what a client wrote, and can take minutes and gigabytes for a few kilobytes of it. This
process gives each grammar little of everything, and dies where that does not suffice; service/api/trials.py reads from
that what to answer. Run as `python -m service.engine.grammar_trial FOLDER VOCAB_SIZE EOS_TOKEN_ID...`; speaks JSON by
lines: says first "" or why it cannot start, then for each grammar that comes "" or what is wrong with it.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
import threading
import time

from service.engine.grammar import Following, GrammarError, load_tokenizer, matcher

CPU_SECONDS = 2
MEMORY_BYTES = 512 << 20
"""Of address space, beyond what the process has when a trial begins."""
HELD_BYTES = 32 << 20
"""Resident, of a compiled grammar and its first mask; times engine.grammar.KEPT it bounds what the engine keeps."""
ANSWER_CHARACTERS = 1000
STACK_BYTES = 2 << 20
"""Much less than the engine has, both where it compiles and where it follows: what passes here passes there."""


def serve(folder: str, vocab_size: int, eos_token_ids: list[int]) -> None:
    """Tries what comes through standard input until that ends."""
    try:
        tokenizer = load_tokenizer(folder, vocab_size, eos_token_ids)
    except GrammarError as error:
        _say(str(error))
        return
    _say("")
    for line in sys.stdin.buffer:
        _limit()
        before = _pages(1)
        try:
            compiled = matcher(tokenizer, json.loads(line))
            Following(compiled).begin()
            held = _pages(1) - before
            _say("" if held < HELD_BYTES else f"it takes {held >> 20} MiB, at most {HELD_BYTES >> 20} are allowed")
            del compiled
        except GrammarError as error:
            _say(str(error))


def _limit() -> None:
    """The kernel ends the process that passes these: SIGXCPU, or an allocation that fails."""
    for kind, soft in (
        (resource.RLIMIT_CPU, math.ceil(time.process_time()) + CPU_SECONDS),
        (resource.RLIMIT_AS, _pages(0) + MEMORY_BYTES),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _pages(field: int) -> int:
    """Bytes of this process: 0 its address space, 1 what is resident."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[field]) * resource.getpagesize()


def _say(answer: str) -> None:
    sys.stdout.write(json.dumps(answer[:ANSWER_CHARACTERS]) + "\n")
    sys.stdout.flush()


def main() -> None:
    folder, vocab_size, *eos_token_ids = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front end ends this process, by closing its input
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=serve, args=(folder, int(vocab_size), list(map(int, eos_token_ids))))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
