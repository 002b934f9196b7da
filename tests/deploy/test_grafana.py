"""The dashboards are what their code says, and whole: nobody has looked at them in Grafana here."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana import __main__ as generator
from deploy.grafana.board import SOURCE_UID
from tests.deploy.panels import FILES, FOLDER, dashboards

DASHBOARDS = dashboards()
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
PANELS = [
    pytest.param(panel, id=f"{uid}-{panel['title']}")
    for uid, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]


def test_the_committed_files_are_what_the_code_makes() -> None:
    made = {name: generator.text(each) for name, each in generator.dashboards().items()}
    committed = {file.name: file.read_text(encoding="utf-8") for file in FILES}
    assert committed.keys() == made.keys(), "run `python -m deploy.grafana`"
    assert [name for name in made if made[name] != committed[name]] == [], "run `python -m deploy.grafana`"


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_nothing_is_lost_when_the_sdk_reads_a_file_by_its_schema(uid: str) -> None:
    plugins.register_default_plugins()
    read = Dashboard.from_json(DASHBOARDS[uid])
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == DASHBOARDS[uid]
    assert DASHBOARDS[uid]["uid"] == uid and DASHBOARDS[uid]["description"]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows_in_which_unit_and_whence(panel: dict) -> None:
    assert panel["title"] and panel["description"].endswith(".") and len(panel["description"]) > 30
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"] and defaults["thresholds"]["steps"][0]["value"] is None
    assert panel["datasource"] == SOURCE and all(target["datasource"] == SOURCE for target in panel["targets"])
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert all(legends) and len(set(legends)) == len(legends)
    if panel["type"] == "timeseries":
        assert all("{{" in legend for legend in legends)
    assert all("$instance" in target["expr"] for target in panel["targets"])


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_panels_fill_the_grid_without_overlapping(uid: str) -> None:
    panels = DASHBOARDS[uid]["panels"]
    cells = Counter(
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    height = max(y for _, y in cells) + 1
    assert set(cells.values()) == {1} and len(cells) == 24 * height and max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in panels}) == len(panels)
    # A laptop shows some 20 lines of the grid: three screens at most, numbers first, and a panel wide enough to be read.
    assert height <= 60 and all(panel["type"] == "stat" for panel in panels[:6])
    assert all(panel["gridPos"]["w"] >= 8 for panel in panels if panel["type"] == "timeseries")
    headings = [panel["gridPos"]["y"] for panel in panels if panel["type"] == "row"]
    assert headings and all(later - former > 1 for former, later in pairwise(headings))


def test_the_provisioned_data_source_is_the_one_that_the_dashboards_choose() -> None:
    provisioned = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    (source,) = provisioned["datasources"]
    scraping = yaml.safe_load((FOLDER.parent / "prometheus/prometheus.yml").read_text(encoding="utf-8"))["global"]
    assert (source["type"], source["uid"]) == ("prometheus", SOURCE_UID)
    assert source["jsonData"]["timeInterval"] == scraping["scrape_interval"]
    for dashboard in DASHBOARDS.values():
        chosen = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
        assert list(chosen) == ["datasource", "instance", "model"]
        assert chosen["datasource"]["current"]["value"] == SOURCE_UID
    (provider,) = yaml.safe_load((FOLDER / "provisioning/dashboards/stride.yml").read_text(encoding="utf-8"))["providers"]
    assert provider["type"] == "file" and provider["options"]["path"].startswith("/var/lib/grafana/")
