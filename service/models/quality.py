"""`quality.json` beside a model's weights: what was measured of its procedures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from service.models.errors import ModelError
from service.procedures.quality import MeasuredQuality, QualityTable

QUALITY_FILE = "quality.json"


def read_quality(folder: Path) -> QualityTable | None:
    """The table of a model's folder, None where there is none.

    Raises ModelError, naming the file and the row, for one that cannot be true or that this version cannot read.
    """
    path = folder / QUALITY_FILE
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=QualityTable)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise ModelError(f"{path}: {error}") from error


def quality_json(features: str, rows: Iterable[MeasuredQuality | Mapping[str, Any]]) -> bytes:
    """The content of `quality.json`, one row a line. Raises msgspec.ValidationError for rows that cannot be true."""
    table = msgspec.convert({"features": features, "rows": [msgspec.to_builtins(row) for row in rows]}, QualityTable)
    lines = ",\n    ".join(msgspec.json.encode(row).decode() for row in table.rows)
    return f'{{\n  "features": {msgspec.json.encode(features).decode()},\n  "rows": [\n    {lines}\n  ]\n}}\n'.encode()
