"""`python -m deploy.grafana`: write every dashboard to `json/`."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.dashboards import overview, procedures, scheduler

FOLDER = Path(__file__).parent / "json"


def dashboards() -> dict[str, Dashboard]:
    """By the name of their file."""
    made = (overview.dashboard(), scheduler.dashboard(), procedures.dashboard())
    return {f"{each.uid}.json": each for each in made}


def text(dashboard: Dashboard) -> str:
    """As the file holds it."""
    return json.dumps(dashboard, cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, each in dashboards().items():
        (FOLDER / name).write_text(text(each), encoding="utf-8")
