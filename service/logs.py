"""The log of every process of the service: lines on standard error, for people or as JSON, never with a prompt in them."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Literal

LogFormat = Literal["human", "json"]
FIELDS = "fields"
"""The attribute of a record that holds its fields: `log.info("...", extra={FIELDS: {...}})`."""

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:+%@,")


@dataclass(frozen=True)
class LogStyle:
    """What a process tells another that it starts: how to log."""

    level: str = "info"
    format: LogFormat = "human"


class HumanFormatter(logging.Formatter):
    """`2026-01-31 12:00:00,000 INFO stride.request: message key=value ...`; `common` are fields of every line."""

    def __init__(self, common: Mapping[str, object] = MappingProxyType({})) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._common = common

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = {**self._common, **_fields(record)}
        pairs = [f"{key}={_shown(value)}" for key, value in fields.items() if value is not None]
        return " ".join([super().formatMessage(record), *pairs])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, process, message, `common` and the record's fields, and
    `exception`."""

    def __init__(self, process: str, common: Mapping[str, object] = MappingProxyType({})) -> None:
        super().__init__()
        self._process = process
        self._common = common

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z", "level": record.levelname.lower(), "logger": record.name,
            "process": self._process, "message": record.getMessage(),
        }  # fmt: skip
        line |= {key: value for key, value in {**self._common, **_fields(record)}.items() if value is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"), default=str)


def configure_logging(level: str, log_format: LogFormat, process: str, **common: object) -> None:
    """Sends everything that is logged or warned of, and an error that ends the process, to standard error. `level` is that of the
    service and its server; libraries are heard from warnings on. `process` is what JSON lines call this one, and `common` are
    fields of every line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process, common) if log_format == "json" else HumanFormatter(common))
    number = logging.getLevelName(level.upper())
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)
    for name in ("stride", "uvicorn"):
        logging.getLogger(name).setLevel(number)
    logging.captureWarnings(True)
    sys.excepthook = _log_exception


def _log_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("stride").critical("the process ends: %s", kind.__name__, exc_info=(kind, error, trace))


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields: Mapping[str, object] = getattr(record, FIELDS, {})
    return fields


def _shown(value: object) -> str:
    """Quoted where it would not stand as one word."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if text and set(text) <= _PLAIN else json.dumps(text)
