"""Lines of the log: one each, in either format, whatever is in them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from service.logs import FIELDS, HumanFormatter, JsonFormatter


def record(**fields: object) -> logging.LogRecord:
    made = logging.LogRecord("stride.request", logging.INFO, __file__, 1, "%s %s", ("POST", "/v1/generate"), None)
    setattr(made, FIELDS, fields)
    return made


def test_a_person_reads_words_and_quoted_text_and_nothing_of_what_does_not_apply() -> None:
    line = HumanFormatter().format(record(id="req-1", seconds=0.123456789, path='/a b"\n', code=None, none=""))
    assert line.endswith(r' INFO stride.request: POST /v1/generate id=req-1 seconds=0.123457 path="/a b\"\n" none=""')


def test_a_machine_reads_one_object_a_line_with_the_exception_in_it() -> None:
    made = record(id="req-1", code=None, n=2)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = JsonFormatter("engine").format(made)
    said = json.loads(line)
    assert "\n" not in line and "ValueError: two\nlines" in said.pop("exception") and said.pop("time").endswith("Z")
    assert said == {
        "level": "info", "logger": "stride.request", "process": "engine", "message": "POST /v1/generate", "id": "req-1", "n": 2,
    }  # fmt: skip


def test_fields_of_a_whole_process_are_in_each_of_its_lines() -> None:
    common = {"model": "text", "rank": 1}
    assert HumanFormatter(common).format(record(id="req-1")).endswith("/v1/generate model=text rank=1 id=req-1")
    assert common.items() <= json.loads(JsonFormatter("rank", common).format(record())).items()


@pytest.mark.parametrize("end", ["raise KeyError('gone')", "import warnings; warnings.warn('old')"])
def test_warnings_and_what_ends_the_process_are_lines_too(end: str) -> None:
    code = f"from service.logs import configure_logging; configure_logging('info', 'json', 'api')\n{end}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    (line,) = [json.loads(line) for line in ended.stderr.splitlines()]
    assert line["level"] in ("critical", "warning") and ("gone" in line.get("exception", "") or "old" in line["message"])
