"""One line of the log for every request, when all of it is over: what was asked, how it ended, and where its time went."""

from __future__ import annotations

import logging
import re
from urllib.parse import quote

from service.api.call import Call
from service.api.running import total
from service.logs import FIELDS

log = logging.getLogger("stride.request")

QUIET = ("/health", "/metrics", "/static/")
"""What is asked every few seconds by machines, or by browsers beside a page: its lines are at level debug."""
PATH_CHARACTERS = 200
METHOD_CHARACTERS = 20
COUNTS = (
    "prompt_tokens", "cached_tokens", "generated_tokens", "forwards", "nfe", "planned_nfe", "queue_seconds",
    "first_output_seconds",
)  # fmt: skip
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")


def log_call(call: Call, trace_id: str | None = None) -> None:
    """`trace_id` is that of its span, where there is one; else the line has the one that the client sent."""
    quiet = call.path.startswith(QUIET)
    status = call.failure[0] if call.failure is not None else call.status or 200
    level = logging.WARNING if status >= 500 and not quiet else logging.DEBUG if quiet else logging.INFO
    if log.isEnabledFor(level):
        # Percent signs again, as it came: no line break or sign of a terminal gets from an address into a line.
        path = call.route or quote(call.path)[:PATH_CHARACTERS]
        log.log(level, "%s %s", call.method[:METHOD_CHARACTERS], path, extra={FIELDS: fields(call, trace_id)})


def fields(call: Call, trace_id: str | None = None) -> dict[str, object]:
    """Of the line, None for what does not apply. Nothing of what a client wrote is among them but its id."""
    assert call.answered is not None
    asked = call.asked
    usages = [output.usage for output in call.outputs if output.usage is not None]
    usage = {} if asked is None else total(usages, asked.each)
    return {
        "id": call.id,
        "trace_id": trace_id or _given_trace(call),
        "status": call.status,
        "outcome": call.outcome,
        "code": None if call.failure is None else call.failure[1],
        "model": None if asked is None else asked.model,
        "procedure": None if asked is None else asked.procedure,
        "outputs": None if asked is None else asked.outputs,
        "streamed": call.streamed or None,
        **{name: _rounded(usage.get(name)) for name in COUNTS},
        "total_seconds": _rounded(call.answered - call.arrived),
    }


def _given_trace(call: Call) -> str | None:
    found = TRACEPARENT.fullmatch(call.trace.get("traceparent", ""))
    return None if found is None else found[1]


def _rounded(value: float | None) -> float | None:
    """Seconds to the microsecond."""
    return round(value, 6) if isinstance(value, float) else value
