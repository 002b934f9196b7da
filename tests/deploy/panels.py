"""The committed dashboards, read as Grafana reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "grafana"
FILES = sorted((FOLDER / "json").glob("*.json"))


def dashboards() -> dict[str, dict[str, Any]]:
    """By uid."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in FILES}


@dataclass(frozen=True)
class Shown:
    """An expression of a dashboard, and the labels that the names of its lines are made of."""

    where: str
    expression: str
    labels: frozenset[str]


def shown() -> list[Shown]:
    """Every expression of every panel and annotation."""
    found = []
    for uid, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                labels = frozenset(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                found.append(Shown(f"{uid}, {panel['title']}, {target['refId']}", target["expr"], labels))
        for annotation in dashboard["annotations"]["list"]:
            found.append(Shown(f"{uid}, annotation {annotation['name']}", annotation["expr"], frozenset()))
    return found


def variables() -> dict[str, str]:
    """The query of every variable that has one; the dashboards share them."""
    return {
        variable["name"]: variable["query"]
        for dashboard in dashboards().values()
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    }


def filled(expression: str, values: Mapping[str, list[str]], window: str) -> str:
    """With the values that were chosen for its variables, several as alternatives of a regular expression, as Grafana's data
    source for Prometheus does it."""
    for name, chosen in values.items():
        escaped = [re.sub(r"([\\^$*+?.()|{}\[\]])", r"\\\\\1", value) for value in chosen]
        expression = expression.replace(f"${name}", escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})")
    expression = expression.replace("$__rate_interval", window)
    assert "$" not in expression, expression
    return expression
